"""What a request asks to be computed: plain data, read from the body and not yet rendered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, unique

import msgspec

from extproc.prompt.rawarray import Json as Json
from extproc.prompt.rawarray import RawArray
from extproc.terms import KEY_BYTES, PackedKeys, TokenIds


class TooNew(Exception):
    """More of a prompt is new than may be worked out here and now. Nothing has changed by it."""


@unique
class Dialect(Enum):
    """Whose messages, tools and system texts they are."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that a chat template turns into one text; all as sent, in their dialect.

    system: Anthropic's `system` or the Responses API's `instructions`; None where there is none.
    tools: the raw JSON of the list, b"" where there is none.
    options: the keyword arguments of the template besides messages and tools.
    effort: the reasoning effort that the API's own field asks for, None where it does not.
    template: the request's own, None where it has none.
    settings: the raw JSON of system, tools and options: equal bytes mean equal values. None where
        the chat did not come from a body.
    """

    messages: RawArray
    dialect: Dialect = Dialect.OPENAI
    system: Json = None
    tools: bytes = b""
    options: Mapping[str, Json] = field(default_factory=dict)
    effort: Json = None
    template: str | None = None
    settings: bytes | None = None
    add_special_tokens: bool = False

    @classmethod
    def of(
        cls,
        messages: Iterable[Json],
        tools: Sequence[Json] | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> "Chat":
        """A chat of these OpenAI messages, which JSON must be able to hold."""
        raw = msgspec.json.encode(tools) if tools else b""
        return cls(RawArray.of(messages), tools=raw, options=options or {})


@dataclass(frozen=True, slots=True)
class Plain:
    """Prompts that need no template, each a text or token ids; each is a chain of its own."""

    prompts: tuple[str | TokenIds, ...]
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, as far as routing needs it.

    model: "" where the body names none. adapter: named in the body itself (SGLang's `lora_path`).
    salt: `cache_salt`, "" for none. max_tokens: the limit on the answer, None where there is none.
    """

    content: Chat | Plain
    model: str = ""
    adapter: str = ""
    salt: str = ""
    stream: bool = False
    max_tokens: int | None = None
    user: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """About how many bytes its messages or prompts are."""
        if isinstance(self.content, Chat):
            return self.content.messages.size
        return sum(map(len, self.content.prompts))


@dataclass(frozen=True, slots=True)
class Chain:
    """The block keys of one prompt, root first, and its length in tokens, part blocks included."""

    keys: PackedKeys
    tokens: int

    @property
    def blocks(self) -> int:
        """Full blocks of the prompt."""
        return len(self.keys) // KEY_BYTES
