"""Whether a new conversation fits beside those that are going on. No I/O, no clock.

When the live conversations of a pool are longer together than its caches, each turn evicts what
another will need, and the pool computes everything again and again: one conversation more makes all
of them slow. The limit is not tuned: it is what the caches hold.
"""

from collections import OrderedDict
from dataclasses import dataclass

from extproc.terms import KEY_BYTES, PackedKeys

MOST_CONVERSATIONS = 200_000
"""Conversations that are remembered; beyond them the one that was silent longest is forgotten."""

BUSY = 0.7
"""Below this utilisation nobody is refused: the pool has the time to compute what it evicts. Chosen
among .7, .8 and .9 on one seed of `benchmarks/experiments.py --only overload`."""

RETRY_S = 5
"""Seconds after which one that was refused may ask again."""


@dataclass(slots=True)
class _Live:
    tokens: int
    at: float


class Admission:
    """The live conversations of a pool, by the last block of their latest prompt.

    A prompt that goes on from one of them is its next turn; what begins with none of them is a new
    conversation, however much of a shared prefix is cached.

    horizon_s: a conversation that is silent for longer is over.
    """

    def __init__(self, horizon_s: float) -> None:
        self.horizon_s = horizon_s
        self._live: OrderedDict[bytes, _Live] = OrderedDict()
        self.tokens = 0
        """Of all live conversations together."""

    def admits(
        self, keys: PackedKeys, tokens: int, capacity: int, utilisation: float, now: float
    ) -> bool:
        """Whether this turn may be served; it is noted as `placed` only if it is.

        keys, tokens: of its prompt. capacity: tokens that the pool's caches hold together.
        utilisation: of its prefill time, 0 to 1. O(blocks of the prompt), newest first.
        """
        self._forget(now)
        if utilisation < BUSY or self.tokens + tokens <= capacity:
            return True
        return self._find(keys) is not None

    def placed(self, keys: PackedKeys, tokens: int, now: float) -> None:
        """The turn is served: its conversation is live, and as long as this prompt."""
        if not keys:
            return
        before = self._find(keys)
        if before is not None:
            self.tokens -= self._live.pop(before).tokens
        last = bytes(keys[-KEY_BYTES:])
        self._live[last] = _Live(tokens, now)
        self.tokens += tokens
        if len(self._live) > MOST_CONVERSATIONS:
            self.tokens -= self._live.popitem(last=False)[1].tokens

    def _find(self, keys: PackedKeys) -> bytes | None:
        """The last block of the live conversation that the prompt goes on from."""
        live = self._live
        for end in range(len(keys), 0, -KEY_BYTES):
            key = bytes(keys[end - KEY_BYTES : end])
            if key in live:
                return key
        return None

    def _forget(self, now: float) -> None:
        while self._live:
            first = next(iter(self._live.values()))
            if now - first.at <= self.horizon_s:
                return
            self.tokens -= self._live.popitem(last=False)[1].tokens
