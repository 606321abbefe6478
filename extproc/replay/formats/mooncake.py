"""Mooncake traces (FAST'25): one JSON line a request, blocks of 512 tokens as ids."""

import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from extproc.errors import ConfigError
from extproc.replay.formats.conversations import Conversations
from extproc.replay.formats.lines import decoded
from extproc.replay.traffic import Request, packed

_BUCKET_MS = 3000


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct):
    timestamp: _Count
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: _Count
    hash_ids: list[_Count]


class Mooncake:
    """A trace in Mooncake's form, played in an open loop.

    speed: how many times faster than recorded. Times lie in buckets (3 s in the published traces):
    the requests of a bucket are spread evenly over it, with a seed.

    Conversations are not named; a request continues the one whose blocks it extends most.
    """

    block_size = 512

    def __init__(self, path: Path, speed: float, seed: int = 0) -> None:
        self._path = path
        self._speed = speed
        self._seed = seed

    def arrivals(self) -> Iterator[Request]:
        """By time; one line is held at a time, and one bucket."""
        chance = random.Random(self._seed)  # noqa: S311 - reproducible, not secret
        conversations = Conversations()
        for start, group, end in self._buckets():
            times = sorted(chance.uniform(start, end) for _ in group)
            for time, line in zip(times, group, strict=True):
                ids = np.array(line.hash_ids[: line.input_length // self.block_size], "<u8")
                keys = packed(ids)
                # All prompts of the published traces share the first block.
                conversation, turn = conversations.of(line.hash_ids[1:], line.hash_ids[1:])
                yield Request(
                    time / 1000 / self._speed,
                    conversation,
                    turn,
                    keys,
                    line.input_length,
                    max(line.output_length, 1),
                    keys,
                )

    def following(self, request: Request, ended: float) -> Request | None:
        """Nothing: the loop is open."""
        return None

    def _buckets(self) -> Iterator[tuple[int, list[_Line], int]]:
        """(start, its lines, end) of every bucket, ms. The last is as long as the one before."""
        before: tuple[int, list[_Line]] | None = None
        width = _BUCKET_MS
        for start, group in groupby(self._lines(), key=lambda line: line.timestamp):
            if before is not None:
                width = start - before[0]
                yield before[0], before[1], min(start, before[0] + _BUCKET_MS)
            before = start, list(group)
        if before is not None:
            yield before[0], before[1], before[0] + min(width, _BUCKET_MS)

    def _lines(self) -> Iterator[_Line]:
        """Raises ConfigError where time goes back, or blocks are missing."""
        at = 0
        for number, line in enumerate(decoded(self._path, _Line), 1):
            if line.timestamp < at:
                raise ConfigError(f"{self._path}: line {number}: timestamp: is before the last one")
            if len(line.hash_ids) < line.input_length // self.block_size:
                raise ConfigError(
                    f"{self._path}: line {number}: hash_ids: are {len(line.hash_ids)},"
                    f" too few for input_length {line.input_length}"
                )
            at = line.timestamp
            yield line
