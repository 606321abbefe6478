"""One chat → one text: dialect, vLLM's rules, then the model's template."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeAlias

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.dialects import (
    EFFORTS,
    inline_system_texts,
    is_local,
    leading_messages,
    to_chat,
    tools_of,
)
from extproc.prompt.memo import Memo
from extproc.prompt.normalise import developer_as_system, normalise_messages, normalise_tools
from extproc.prompt.template import ChatTemplate
from extproc.prompt.types import Chat, Dialect, Json

Messages: TypeAlias = list[dict[str, Json]]

_GIVEN_BYTES = 32 << 20
_GIVEN_COST = 50
"""About how many bytes a character of a template takes, compiled."""

_TOOLS_BYTES = 32 << 20
_TOOLS_COST = 8
"""About how many bytes a byte of tools takes, with its values and texts."""


class Templates:
    """A model's templates: the default one, and perhaps one for requests with tools.

    trusts_requests: whether a template that a request brings is rendered.
    """

    def __init__(self, named: Mapping[str, ChatTemplate], trusts_requests: bool = False) -> None:
        self._trusts_requests = trusts_requests
        self._given: Memo[str, ChatTemplate] = Memo(_GIVEN_BYTES)
        self._named = dict(named)
        self._tools: Memo[bytes, list[dict[str, Json]]] = Memo(_TOOLS_BYTES)
        # Without a template vLLM expects the system message first too.
        self.merges_system = not named or any(
            _refuses_inline_system(each.source) for each in named.values()
        )
        self.disabled_effort = self._disabled_effort()

    def choose(self, has_tools: bool) -> ChatTemplate:
        """The template for a request. Raises Unroutable where the model has none."""
        template = self._named.get("tool_use") if has_tools else None
        template = template or self._named.get("default")
        if template is None:
            raise Unroutable("no_chat_template")
        return template

    def given(self, source: str) -> ChatTemplate:
        """The template that a request brings, or names.

        Raises Unroutable where it is not to be rendered, or is no template.
        """
        if not self._trusts_requests:
            raise Unroutable("request_chat_template")
        if source in self._named:
            return self._named[source]
        template = self._given.get(source)
        if template is None:
            try:
                template = self.choose(False).sibling(source)
            except ConfigError:
                raise Unroutable("template_failed", "not a template") from None
            self._given.put(source, template, _GIVEN_COST * (len(source) + 100))
        return template

    def tools(self, chat: Chat) -> list[dict[str, Json]] | None:
        """A chat's tools as its template gets them; those of known JSON are made once.

        Raises Unroutable for what vLLM refuses.
        """
        if not chat.tools:
            return None
        key = xxh3_128_digest(chat.tools) + chat.dialect.value.encode()
        tools = self._tools.get(key)
        if tools is None:
            tools = normalise_tools(tools_of(chat))
            if tools:
                self._tools.put(key, tools, _TOOLS_COST * len(chat.tools))
        return tools

    def __iter__(self) -> Iterator[ChatTemplate]:
        return iter(self._named.values())

    def _disabled_effort(self) -> str:
        """The reasoning effort of Anthropic's `thinking: disabled`.

        "low" where the template refuses or ignores "none" (vLLM 0.32.0, anthropic/serving.py,
        `_probe_disabled_thinking_effort`).
        """
        none = self._probe("none")
        if none is None or any(self._probe(effort) == none for effort in EFFORTS):
            return "low"
        return "none"

    def _probe(self, effort: str) -> str | None:
        options = {
            "reasoning_effort": effort,
            "enable_thinking": effort != "none",
            "add_generation_prompt": True,
        }
        messages = normalise_messages([{"role": "user", "content": "Hi"}])
        try:
            return self.choose(False).render(messages, None, options)
        except Unroutable:
            return None


class Rendering:
    """How one chat is rendered, whole or in part: its template, tools and options are settled.

    An item is one element of the chat's array; it becomes one message, or several (Anthropic).
    """

    def __init__(self, chat: Chat, templates: Templates) -> None:
        self.chat = chat
        self.tools = templates.tools(chat)
        if chat.template is None:
            self.template = templates.choose(self.tools is not None)
        else:
            self.template = templates.given(chat.template)
        self.options = _with_effort(chat, templates.disabled_effort)
        self.options_digest = xxh3_64_intdigest(repr(sorted(self.options.items())).encode())
        self._merges_system = chat.dialect is Dialect.ANTHROPIC and templates.merges_system
        self._leading = leading_messages(chat)

    @property
    def has_leading(self) -> bool:
        """Whether a system message comes before the chat's own."""
        return bool(self._leading)

    def settings(self) -> bytes:
        """Bytes that are equal only for equal renderings of equal messages."""
        chat = self.chat
        given = chat.settings
        if given is None:
            given = msgspec.json.encode([chat.system, self.options]) + chat.tools
        return b"%s %d " % (chat.dialect.value.encode(), id(self.template)) + given

    def items(self, indices: Iterable[int] | None = None) -> list[Messages]:
        """The messages of each of these items, or of all, as the template gets them."""
        decoded = self.chat.messages.decoded(indices)
        dialect, parts = self.chat.dialect, self.template.takes_parts
        if dialect is Dialect.OPENAI:
            return [[message] for message in normalise_messages(decoded, parts)]
        return [normalise_messages(to_chat(dialect, [item]), parts) for item in decoded]

    def whole(self, items: list[Messages] | None, media: str | None = None) -> bytes:
        """The text of the whole prompt, as UTF-8.

        items: those of `items()`, if they are local. media: written for images and the like.
        """
        leading = self._leading
        parts = self.template.takes_parts
        if items is not None:
            messages = list(chain.from_iterable(items))
        else:
            decoded = self.chat.messages.decoded()
            if self._merges_system:
                leading = leading_messages(self.chat, inline_system_texts(decoded))
            chat = to_chat(self.chat.dialect, decoded, self._merges_system)
            messages = normalise_messages(chat, parts, media)
        messages = normalise_messages(leading, parts) + messages
        if not self.template.knows_developer:
            messages = developer_as_system(messages)
        return self.template.render_utf8(messages, self.tools, self.options)

    def part(self, items: Iterable[Messages], opens_answer: bool) -> bytes:
        """The text of a chat of these items only; opens_answer: with what begins the answer."""
        messages = normalise_messages(self._leading, self.template.takes_parts)
        messages.extend(chain.from_iterable(items))
        options = self.options if opens_answer else self.options | {"add_generation_prompt": False}
        return self.template.render_utf8(messages, self.tools, options)

    def are_local(self) -> bool:
        """Whether each item becomes messages on its own, at least if `is_local` says so of it."""
        return is_local(self.chat.dialect)

    def is_local(self, item: Messages) -> bool:
        """Whether an item stays where it stands, whatever else is in the chat."""
        for message in item:
            role = message["role"]
            if role == "developer" and not self.template.knows_developer:
                return False
            if role == "system" and self._merges_system:
                return False
        return True


def _with_effort(chat: Chat, disabled: str) -> dict[str, Json]:
    options = dict(chat.options)
    if chat.dialect is Dialect.ANTHROPIC and options.get("reasoning_effort") == "none":
        options["reasoning_effort"] = disabled
        if "enable_thinking" in options and options["enable_thinking"] is False:
            options["enable_thinking"] = disabled != "none"
    return options


def _refuses_inline_system(source: str) -> bool:
    """Whether system messages must come first (vLLM 0.32.0, `_detect_merge_inline_system`).

    The environment of that probe has none of transformers' functions, so a template that calls one
    of them there counts as refusing.
    """
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    messages = [{"role": role, "content": "t"} for role in ("system", "user") * 2]
    try:
        sandbox.from_string(source).render(messages=messages, add_generation_prompt=False)
    except TemplateError:
        return True
    except Exception:  # vLLM would not start
        return True
    return False
