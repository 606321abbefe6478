"""Conversations as lengths of turns, played in a closed loop with think times."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

from extproc.replay.formats.lines import decoded
from extproc.replay.traffic import Ids, Request, packed
from extproc.terms import PackedKeys

Lengths: TypeAlias = list[tuple[int, int]]
"""A conversation: tokens that the user said and tokens of the answer, turn by turn."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


def lengths(path: Path) -> list[Lengths]:
    """Of a file with a JSON line a conversation, `[[user tokens, answer tokens], …]`.

    Raises ConfigError that names the line.
    """
    return list(decoded(path, list[tuple[_Count, _Count]]))


class Turns:
    """Conversations of which only lengths are known, each a list of (user tokens, answer tokens).

    Conversations start at `rate` a second (Poisson); the next turn comes an exponential think time
    after the answer. A conversation ends after `most_turns` or at `context` tokens. They come in an
    order that is shuffled with the seed.
    """

    block_size = 16

    def __init__(
        self,
        listed: Sequence[Lengths],
        rate: float = 14.0,
        think_s: float = 30.0,
        most_turns: int = 20,
        context: int = 32_768,
        seed: int = 0,
    ) -> None:
        self._listed = listed
        self._rate = rate
        self._think_s = think_s
        self._most_turns = most_turns
        self._context = context
        self._chance = random.Random(seed)  # noqa: S311
        self._rest: dict[int, tuple[list[tuple[int, int]], Ids]] = {}

    def arrivals(self) -> Iterator[Request]:
        """The first turns."""
        listed = self._listed
        order = list(range(len(listed)))
        random.Random(self._chance.random()).shuffle(order)  # noqa: S311 - reproducible, not secret
        time = 0.0
        for number in order:
            turns = listed[number][: self._most_turns]
            time += self._chance.expovariate(self._rate)
            total = sum(max(user, 1) + answer for user, answer in turns)
            blocks = min(total, self._context) // self.block_size + 1
            ids = np.arange(blocks, dtype="<u8") + np.uint64((number + 1) << 24)
            self._rest[number] = (turns, ids)
            request = self._request(number, 0, 0, time)
            if request is not None:
                yield request

    def following(self, request: Request, ended: float) -> Request | None:
        """The next turn, after a think time."""
        think = self._chance.expovariate(1 / self._think_s)
        said = request.tokens + request.output
        return self._request(request.conversation, request.turn + 1, said, ended + think)

    def _request(self, number: int, turn: int, said: int, at: float) -> Request | None:
        turns, ids = self._rest[number]
        if turn < len(turns):
            user, answer = turns[turn]
            tokens, answer = said + max(user, 1), max(answer, 1)
            if tokens + answer <= self._context:
                keys = self._keys(ids, tokens)
                # The last sampled token is never computed.
                return Request(
                    at, number, turn, keys, tokens, answer, self._keys(ids, tokens + answer - 1)
                )
        del self._rest[number]
        return None

    def _keys(self, ids: Ids, tokens: int) -> PackedKeys:
        return PackedKeys(packed(ids[: tokens // self.block_size]))
