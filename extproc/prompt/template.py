"""A model's chat template: Jinja in a sandbox, set up as transformers does for the engines.

Environment, filters and globals are those of `apply_chat_template` (transformers 5.19,
utils/chat_template_utils.py): blocks trimmed, loop controls, `generation` blocks, a `tojson` that
does not escape HTML, `raise_exception` and `strftime_now`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.normalise import KeptJson
from extproc.prompt.sandbox import ChatSandbox
from extproc.prompt.types import Json

_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put after the message to be continued and cut off with all that follows it; the text is that of
transformers, because a template that trims the message trims its last blank too."""

_SEARCHES = frozenset(
    {
        "count",
        "endswith",
        "find",
        "index",
        "partition",
        "rfind",
        "rpartition",
        "rsplit",
        "split",
        "startswith",
    }
)


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said; it renders as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call block, so that names set inside stay inside, as with transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class ChatTemplate:
    """A compiled template and the tokens (bos, eos, …) that it may name.

    now: the engine's clock, for templates that write the date.

    takes_parts: whether it loops over the parts of a content. knows_developer: whether it knows the
    role `developer`. markers: texts that it looks for in contents.

    Raises ConfigError where the source is not a template.
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str],
        name: str = "chat template",
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._now = now
        self._formats: dict[str, None] = {}
        sandbox = self._sandbox()
        try:
            tree = sandbox.tree(source)
            self._template = sandbox.from_string(source)
            # Jinja chains two maps, and each rendering copies them name by name.
            self._template.globals = dict(self._template.globals)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{name}:{error.lineno}: not a Jinja template: {error}") from None
        self._tokens = dict(tokens)
        self.source = source
        self.markers = _markers(tree)
        self.takes_parts = loops_over_content(tree)
        self.knows_developer = '"developer"' in source or "'developer'" in source

    def sibling(self, source: str) -> "ChatTemplate":
        """Another template of the same model. Raises ConfigError as the constructor does."""
        return ChatTemplate(source, self._tokens, "the request's template", self._now)

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        tools: Sequence[Mapping[str, Json]] | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> str:
        """The prompt's text. Raises Unroutable where the template fails on these messages."""
        return self.render_utf8(messages, tools, options).decode()

    def render_utf8(
        self,
        messages: Sequence[Mapping[str, Json]],
        tools: Sequence[Mapping[str, Json]] | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> bytes:
        """The prompt's text as UTF-8, which is quicker to make of its parts than of the whole.

        Raises Unroutable as `render` does, also for a lone surrogate, which no tokenizer takes.
        """
        options = dict(options or {})
        continued = options.pop("continue_final_message", False)
        if continued:
            if "content" not in self.source:  # transformers refuses such a template
                raise Unroutable("nothing_to_continue")
            messages, final = _mark_final(messages)
        values = {
            **self._tokens,
            "add_generation_prompt": False,
            "documents": None,
            **options,
            "messages": messages,
            "tools": tools,
            **ChatSandbox.steps(),
        }
        template = self._template
        try:
            # Not `template.render`, which rewrites the traceback of what fails.
            texts = list(template.root_render_func(template.new_context(values)))
        except Exception as error:  # what a template can raise has no bound; none is our fault
            raise Unroutable("template_failed", type(error).__name__) from None
        if continued:
            texts = [_cut_at_mark("".join(texts), final)]
        try:
            return b"".join([text.encode() for text in texts])
        except UnicodeEncodeError:
            raise Unroutable("lone_surrogate") from None

    def clock(self) -> tuple[str, ...]:
        """What `strftime_now` would give now, for every format that was ever asked for.

        Texts of one template and the same values are equal if this is.
        """
        now = self._now()
        return tuple(map(now.strftime, tuple(self._formats)))

    def _sandbox(self) -> ChatSandbox:
        sandbox = ChatSandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
        )
        sandbox.filters["tojson"] = _tojson
        sandbox.globals["raise_exception"] = _raise_exception
        sandbox.globals["strftime_now"] = self._strftime_now
        return sandbox

    def _strftime_now(self, form: str) -> str:
        self._formats[form] = None
        return self._now().strftime(form)


def _markers(template: nodes.Template) -> tuple[str, ...]:
    """Texts that the template looks for in others, such as `</think>` in an answer."""
    found: dict[Json, None] = {}
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            found |= {arg.value: None for arg in call.args if isinstance(arg, nodes.Const)}
    for compare in template.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops) and isinstance(
            compare.expr, nodes.Const
        ):
            found[compare.expr.value] = None
    return tuple(text for text in found if isinstance(text, str) and text)


def loops_over_content(template: nodes.Template) -> bool:
    """Whether a template loops over the parts of a message's content.

    Then vLLM gives it lists of parts, else one text (vllm 0.32.0, renderers/hf.py,
    `_detect_content_format`). Followed are names that are set to `messages`, loops over them,
    their items' `content`, and macros that get it as an argument.
    """
    chats = {"messages"}
    for _ in template.find_all(nodes.Assign):  # until nothing is new: a name set to a name
        chats |= {
            assign.target.name
            for assign in template.find_all(nodes.Assign)
            if isinstance(assign.target, nodes.Name) and _base_name(assign.node) in chats
        }
    items = {
        loop.target.name
        for loop in template.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _base_name(loop.iter) in chats
    }
    in_macros = set()
    for macro in template.find_all(nodes.Macro):
        contents = _content_parameters(template, macro, items)
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, nodes.Name) and loop.iter.name in contents:
                return True
    for loop in template.find_all(nodes.For):
        if _is_content(loop.iter, items):
            return True
        named_content = isinstance(loop.iter, nodes.Name) and loop.iter.name == "content"
        if named_content and id(loop) not in in_macros:
            return True
    return False


def _content_parameters(template: nodes.Template, macro: nodes.Macro, items: set[str]) -> set[str]:
    """Names of the macro's parameters that get a message's content somewhere."""
    names = [argument.name for argument in macro.args]
    found = set()
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            found |= {
                name
                for name, value in zip(names, call.args, strict=False)
                if _is_content(value, items)
            }
            found |= {word.key for word in call.kwargs if _is_content(word.value, items)}
    return found & set(names)


def _base(node: nodes.Node | None) -> nodes.Node | None:
    """What a filter, a test or a slice is applied to."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return node


def _base_name(node: nodes.Node) -> str | None:
    base = _base(node)
    return base.name if isinstance(base, nodes.Name) else None


def _is_content(node: nodes.Node, items: set[str]) -> bool:
    base = _base(node)
    if isinstance(base, nodes.Getattr):
        named = base.attr == "content"
    elif isinstance(base, nodes.Getitem):
        named = isinstance(base.arg, nodes.Const) and base.arg.value == "content"
    else:
        return False
    return named and isinstance(base.node, nodes.Name) and base.node.name in items


def _mark_final(
    messages: Sequence[Mapping[str, Json]],
) -> tuple[Sequence[Mapping[str, Json]], str]:
    """The messages with the mark after the last text of the last one, and that text."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], {**messages[-1], "content": content + _CONTINUE_MARK}], content
    parts = list(content) if isinstance(content, list) else []
    for i in reversed(range(len(parts))):
        if "text" in parts[i]:
            text = parts[i]["text"]
            parts[i] = parts[i] | {"text": text + _CONTINUE_MARK}
            return [*messages[:-1], {**messages[-1], "content": parts}], text
    raise Unroutable("nothing_to_continue")


def _cut_at_mark(text: str, final: str) -> str:
    mark = _CONTINUE_MARK.strip()
    at = text.rfind(mark)
    if at < 0 or final.strip() not in text:
        raise Unroutable("nothing_to_continue")
    kept = text[:at]
    return kept if text.startswith(_CONTINUE_MARK, at) else kept.rstrip()


def _tojson(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    dumps = value.text if type(value) is KeptJson else partial(json.dumps, value)
    text: str = dumps(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
