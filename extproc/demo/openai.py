"""The OpenAI side of the simulated engine: what a body asks for, and the shapes of the answers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that gives none, by the API's definition."""


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool = False


class Wanted(msgspec.Struct):
    """What a body asks for besides its prompt; other fields are accepted and change nothing."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    ignore_eos: bool = False
    cache_salt: str | None = None
    tools: list[Any] | None = None

    def limit(self, path: str) -> int | None:
        """The most tokens to generate; None where only the context ends it."""
        if path == CHAT and self.max_completion_tokens is not None:
            return self.max_completion_tokens
        if path == COMPLETIONS and self.max_tokens is None:
            return COMPLETION_TOKENS
        return self.max_tokens

    def refusal(self) -> tuple[str, str] | None:
        """What vLLM refuses here, and the field that is wrong."""
        for name in ("max_tokens", "max_completion_tokens", "n"):
            value = getattr(self, name)
            if value is not None and value < 1:
                return f"{name} must be at least 1, got {value}.", name
        if self.cache_salt == "":
            return "cache_salt must not be empty.", "cache_salt"
        if self.tools == []:
            return "tools must not be an empty list.", "tools"
        return None


class ApiError(Exception):
    """An error answer in vLLM's form."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, "BadRequestError", message, param)


def unknown_model(name: str) -> ApiError:
    """404."""
    return ApiError(404, "NotFoundError", f"The model `{name}` does not exist.", "model")


@dataclass(slots=True)
class Usage:
    """Tokens of one request, over all of its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def body(self) -> dict[str, Any]:
        """The JSON of `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Shapes:
    """The JSON of one request's answers: `chat` or plain completion."""

    chat: bool
    model: str
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid4().hex
        self.created = int(time.time())

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a streamed choice, where there is one before the text."""
        if not self.chat:
            return None
        delta = {"role": "assistant", "content": ""}
        return self._chunk([self._choice(index, None) | {"delta": delta}])

    def piece(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The chunk of one token."""
        content = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk([self._choice(index, finish_reason) | content])

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The last chunk, where usage was asked for."""
        return self._chunk([]) | {"usage": usage.body()}

    def whole(self, choices: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """The answer that is not streamed. choices: (text, finish reason) each."""
        kind = "chat.completion" if self.chat else "text_completion"
        listed = [
            self._choice(index, reason) | self._content(text)
            for index, (text, reason) in enumerate(choices)
        ]
        return self._head(kind) | {"choices": listed, "usage": usage.body()}

    def _content(self, text: str) -> dict[str, Any]:
        if self.chat:
            return {"message": {"role": "assistant", "content": text, "tool_calls": []}}
        return {"text": text}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._head(kind) | {"choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @staticmethod
    def _choice(index: int, finish_reason: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": None,
        }
