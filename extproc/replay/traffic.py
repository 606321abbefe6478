"""Traffic: the requests of a replay, as block keys and counts. No text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from extproc.terms import PackedKeys

Ids = NDArray[np.uint64]
"""Ids of chained blocks, root first: the same id is the same prefix."""


@dataclass(slots=True, eq=False)
class Request:
    """One request of a trace.

    at: when it arrives, seconds. conversation: which turns belong together. keys: the full blocks
    of its prompt. tokens, output: of the prompt and of the answer. answered: the full blocks of
    prompt and answer together, where the trace knows them, else `keys`. next_at: when the
    conversation's next turn comes, where that is known beforehand (`Foretold`). calls_tool: whether
    its answer calls a tool.
    """

    at: float
    conversation: int
    turn: int
    keys: PackedKeys
    tokens: int
    output: int
    answered: PackedKeys
    next_at: float | None = None
    calls_tool: bool = False


class Traffic(Protocol):
    """Where a replay's requests come from.

    block_size: tokens a block.
    """

    block_size: int

    def arrivals(self) -> Iterator[Request]:
        """Requests whose time is known beforehand, by rising `at`. One pass; streamed."""

    def following(self, request: Request, ended: float) -> Request | None:
        """The conversation's next turn, if its time depends on this answer's end (closed loop)."""


def packed(ids: Ids) -> PackedKeys:
    """Block keys made from ids: mixed, because the index takes keys for uniform hashes.

    splitmix64's finaliser, which is a bijection: different ids, different keys.
    """
    with np.errstate(over="ignore"):
        mixed = (ids + np.uint64(0x9E3779B97F4A7C15)).astype("<u8")
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return PackedKeys((mixed ^ (mixed >> np.uint64(31))).tobytes())
