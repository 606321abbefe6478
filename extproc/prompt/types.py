"""What a request asks to be computed: plain data, read from the body and not yet rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from extproc.terms import KEY_BYTES, PackedKeys, TokenIds

Json: TypeAlias = Any
"""A JSON value as `msgspec` decodes it; its shape is the client's."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that a chat template turns into one text.

    messages: objects as sent. tools: None where there are none.
    options: the keyword arguments of the template besides messages and tools.
    """

    messages: Sequence[dict[str, Json]]
    tools: Sequence[Json] | None = None
    options: Mapping[str, Json] = field(default_factory=dict)
    add_special_tokens: bool = False


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


@dataclass(frozen=True, slots=True)
class Chain:
    """The block keys of one prompt, root first, and its length in tokens, part blocks included."""

    keys: PackedKeys
    tokens: int

    @property
    def blocks(self) -> int:
        """Full blocks of the prompt."""
        return len(self.keys) // KEY_BYTES
