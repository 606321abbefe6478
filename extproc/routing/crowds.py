"""Prefixes whose holders are waited for: when the next holder is worth its prefill."""

from collections import OrderedDict
from math import exp

from extproc.routing.views import Ranking
from extproc.terms import KEY_BYTES, BlockKey, PackedKeys

MEMORY_S = 30.0
"""Seconds after which a wait counts e times less."""

MOST_PREFIXES = 10_000
"""Prefixes that are remembered; those that nobody waited for longest are forgotten."""


def last_of(keys: PackedKeys, blocks: int) -> BlockKey | None:
    """The key that names the prefix of so many blocks; None for the empty one."""
    end = blocks * KEY_BYTES
    return BlockKey(int.from_bytes(keys[end - KEY_BYTES : end], "little")) if blocks else None


class Crowds:
    """Per prefix, what its turns have waited of late at its holders and not elsewhere.

    A copy is computed once and serves all who come later, how many nobody knows. As with skis,
    which one should buy when the rents paid come to their price, the next holder is worth its
    prefill when enough has been waited for want of it, whoever comes after. A prefix is known by
    the key of its last block. Turns of one chat end in different blocks, so only what is shared
    adds up.
    """

    def __init__(self) -> None:
        self._waits: OrderedDict[BlockKey, tuple[float, float]] = OrderedDict()

    def waited_s(self, prefix: BlockKey | None, now: float) -> float:
        """So long for that prefix."""
        if prefix is None or (known := self._waits.get(prefix)) is None:
            return 0.0
        seconds, at = known
        return seconds * exp(min(at - now, 0.0) / MEMORY_S)

    def placed(self, prefix: BlockKey | None, ranking: Ranking, now: float) -> None:
        """A turn was placed whose longest cached prefix is this. O(instances)."""
        if prefix is None:
            return
        best = ranking.best
        if best.cached_tokens < max(score.cached_tokens for score in ranking.scores):
            self._waits.pop(prefix, None)  # it gets another holder
            return
        more = best.wait_s - min(score.wait_s for score in ranking.scores)
        if more > 0:
            self._waits[prefix] = (self.waited_s(prefix, now) + more, now)
            self._waits.move_to_end(prefix)
            if len(self._waits) > MOST_PREFIXES:
                self._waits.popitem(last=False)
