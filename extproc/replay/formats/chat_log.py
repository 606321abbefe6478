"""Chat logs: one JSON line a request, as it was sent to the engine, with the time that it came.

    {"timestamp": 1763999000.25, "messages": [{"role": "user", "content": "…"}], "output_tokens": 9}

What else a chat or completions request may have (`tools`, `prompt`, `model`, …) is read as the
product reads it: rendered, tokenized and hashed by the same code.
"""

import heapq
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from extproc.errors import BadRequest, ConfigError, Unroutable
from extproc.prompt import ServedModel, parse_body, root_seed
from extproc.replay.formats.conversations import Conversations
from extproc.replay.formats.lines import lines_of
from extproc.replay.traffic import Request
from extproc.stages import Stages
from extproc.terms import TOKEN_BYTES

TIMES = ("timestamp", "time", "created")
ANSWERS = ("output_tokens", "response", "usage")
SESSIONS = ("session", "conversation")

OUTPUT_TOKENS = 200
"""Of an answer of which nothing is said."""

REORDERED = 10_000
"""Lines that are held until their time has come: logs are written as answers end."""

_MILLISECONDS = 1e11
"""A time above it is no number of seconds of this age."""


class ChatLog:
    """A log of requests, played in an open loop.

    model: whose template and tokenizer are used for all. speed: how many times faster than
    recorded.
    """

    block_size = 16

    def __init__(self, path: Path, model: ServedModel, speed: float) -> None:
        self._path = path
        self._model = model
        self._speed = speed

    def arrivals(self) -> Iterator[Request]:
        """By time. Streamed: `REORDERED` lines are held, as keys.

        Raises ConfigError that names the line.
        """
        waiting: list[tuple[float, int, Request]] = []
        names = Conversations()
        first: float | None = None
        went = 0.0
        for number, line in enumerate(lines_of(self._path), 1):
            try:
                at, request = self._read(line, names)
            except (BadRequest, Unroutable, ValueError) as error:
                raise ConfigError(f"{self._path}: line {number}: {error}") from None
            if at < went:
                raise ConfigError(
                    f"{self._path}: line {number}: is earlier than {REORDERED} lines before it"
                )
            heapq.heappush(waiting, (at, number, request))
            if len(waiting) > REORDERED:
                first = waiting[0][0] if first is None else first
                went, _, request = heapq.heappop(waiting)
                yield self._timed(request, went - first)
        while waiting:
            first = waiting[0][0] if first is None else first
            at, _, request = heapq.heappop(waiting)
            yield self._timed(request, at - first)

    def following(self, request: Request, ended: float) -> Request | None:
        """Nothing: the loop is open."""
        return None

    def _timed(self, request: Request, seconds: float) -> Request:
        request.at = seconds / self._speed
        return request

    def _read(self, line: bytes, names: Conversations) -> tuple[float, Request]:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("is not an object")
        at = _time(fields)
        output = self._output(fields)
        session = next((str(fields[name]) for name in SESSIONS if fields.get(name)), None)
        for name in (*TIMES, *ANSWERS, *SESSIONS):
            fields.pop(name, None)
        path = "/v1/completions" if "prompt" in fields else "/v1/chat/completions"
        prompt = parse_body(path, json.dumps(fields).encode())
        root = root_seed(
            secret=b"", model=prompt.model, salt=prompt.salt, block_size=self.block_size
        )
        chains = self._model.encode(prompt, root, self.block_size, Stages())
        if len(chains) != 1:
            raise ValueError("prompt: several in one request")
        (chain,) = chains
        if session is None:
            # Only by its last block: those before it may be of a system prompt that many share.
            blocks = np.frombuffer(chain.keys, "<u8").tolist()
            conversation, turn = names.of(blocks, blocks[-1:])
        else:
            conversation, turn = names.of([session], [session])
        tokens = max(chain.tokens, 1)
        return at, Request(at, conversation, turn, chain.keys, tokens, output, chain.keys)

    def _output(self, fields: dict[str, Any]) -> int:
        """Tokens of the answer, as the log counts them, or as its text has."""
        usage = fields.get("usage")
        counted = fields.get("output_tokens")
        if counted is None and isinstance(usage, dict):
            counted = usage.get("completion_tokens")
        if counted is None and isinstance(text := fields.get("response"), str):
            counted = len(self._model.tokenize(text)) // TOKEN_BYTES
        if counted is None:
            return OUTPUT_TOKENS
        if not isinstance(counted, int) or counted < 0:
            raise ValueError("output_tokens: is not a number of tokens")
        return max(counted, 1)


def _time(fields: dict[str, Any]) -> float:
    """Seconds, from seconds, milliseconds or ISO 8601."""
    name = next((name for name in TIMES if name in fields), None)
    if name is None:
        raise ValueError(f"has no time: one of {', '.join(TIMES)}")
    value = fields[name]
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            raise ValueError(f"{name}: is no time of ISO 8601") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{name}: is no time in seconds or milliseconds")
    return value / 1000 if value > _MILLISECONDS else float(value)
