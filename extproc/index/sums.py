"""Sums of the block keys that an instance holds, of which the digest is made."""

import numpy as np

from extproc.index.facts import Tier

TIERS = len(Tier)
PLANES = 2 * TIERS

_PENDING_BYTES = 4096


class Sums:
    """Sum of the keys in each plane, modulo 2⁶⁴.

    Keys of runs that come or go are put aside and added up many at a time, which costs a tenth. A
    run that is in a tier's plane and confirmed there is kept once, under the latter.
    """

    __slots__ = ("_come", "_gone", "_totals")

    def __init__(self) -> None:
        self._totals = [0] * PLANES
        self._come = tuple(bytearray() for _ in range(PLANES))
        self._gone = tuple(bytearray() for _ in range(PLANES))

    def add(self, planes: tuple[int, ...], keys: bytes) -> None:
        """These blocks come into `planes`: a tier's, or that and its confirmed one's."""
        pending = self._come[planes[-1]]
        pending += keys
        if len(pending) > _PENDING_BYTES:
            self._settle()

    def remove(self, planes: tuple[int, ...], keys: bytes) -> None:
        """These blocks go."""
        pending = self._gone[planes[-1]]
        pending += keys
        if len(pending) > _PENDING_BYTES:
            self._settle()

    def shift(self, plane: int, total: int) -> None:
        """Blocks with this sum come into one plane; or go, if it is negative."""
        self._totals[plane] += total

    def totals(self) -> list[int]:
        """The sums, by plane."""
        self._settle()
        return [total & ((1 << 64) - 1) for total in self._totals]

    def _settle(self) -> None:
        for sign, pending in ((1, self._come), (-1, self._gone)):
            for plane, keys in enumerate(pending):
                if keys:
                    total = sign * int(np.frombuffer(keys, np.uint64).sum())
                    keys.clear()
                    self._totals[plane] += total
                    if plane >= TIERS:
                        self._totals[plane - TIERS] += total
