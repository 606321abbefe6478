"""A model's chat template: Jinja in a sandbox, set up as transformers does for the engines.

Environment, filters and globals are those of `apply_chat_template` (transformers 5.19,
utils/chat_template_utils.py): blocks trimmed, loop controls, `generation` blocks, a `tojson` that
does not escape HTML, `raise_exception` and `strftime_now`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.types import Json

_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put after the message to be continued and cut off with all that follows it; the text is that of
transformers, because a template that trims the message trims its last blank too."""


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

    Raises ConfigError where the source is not a template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], name: str = "chat template") -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{name}:{error.lineno}: not a Jinja template: {error}") from None
        self._source = source
        self._tokens = dict(tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        tools: Sequence[Mapping[str, Json]] | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> str:
        """The prompt's text. Raises Unroutable where the template fails on these messages."""
        options = dict(options or {})
        continued = options.pop("continue_final_message", False)
        if continued:
            messages, final = _mark_final(messages)
        values = {
            **self._tokens,
            "add_generation_prompt": False,
            "documents": None,
            **options,
            "messages": messages,
            "tools": tools,
        }
        try:
            text = self._template.render(values)
        except Exception as error:  # what a template can raise has no bound; none is our fault
            raise Unroutable("template_failed", type(error).__name__) from None
        return _cut_at_mark(text, final) if continued else text


def _mark_final(
    messages: Sequence[Mapping[str, Json]],
) -> tuple[Sequence[Mapping[str, Json]], str]:
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str):
        raise Unroutable("nothing_to_continue")
    return [*messages[:-1], {**messages[-1], "content": content + _CONTINUE_MARK}], content


def _cut_at_mark(text: str, final: str) -> str:
    mark = _CONTINUE_MARK.strip()
    at = text.rfind(mark)
    if at < 0 or final.strip() not in text:
        raise Unroutable("nothing_to_continue")
    kept = text[:at]
    return kept if text.startswith(_CONTINUE_MARK, at) else kept.rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
