"""The prefixes that most conversations share, as the picks show them. No I/O, no clock."""

from dataclasses import dataclass

from extproc.terms import BlockKey

MOST_PREFIXES = 1_000
"""Prefixes that are counted; of more, the rarest gives its place and its count away."""

FADES_AFTER = 10_000
"""After so many picks all counts are halved, so that what was hot last week is not."""


@dataclass(slots=True)
class _Counted:
    blocks: int
    picks: int


class HotPrefixes:
    """Counts the longest cached prefix of every pick.

    Turns of one chat end in different blocks each, so only what several share adds up. Bounded by
    the Space-Saving rule (Metwally et al., ICDT 2005): a new prefix takes the place of the rarest,
    with its count, so whatever is more than one in MOST_PREFIXES of the picks is never lost.
    """

    def __init__(self) -> None:
        self._counted: dict[BlockKey, _Counted] = {}
        self._picks = 0

    def count(self, prefix: BlockKey, blocks: int) -> int:
        """A pick with this longest cached prefix: how often it was, at most. O(1), but for the
        1,001st of many prefixes: O(MOST_PREFIXES)."""
        self._picks += 1
        if self._picks >= FADES_AFTER:
            self._fade()
        known = self._counted.get(prefix)
        if known is None:
            before = self._make_room()
            known = self._counted[prefix] = _Counted(blocks, before)
        known.picks += 1
        return known.picks

    def hottest(self, most: int, least_picks: int) -> list[tuple[BlockKey, int]]:
        """(last block, blocks) of those counted at least so often, those first that save most:
        their picks times their blocks."""
        hot = [(key, one) for key, one in self._counted.items() if one.picks >= least_picks]
        hot.sort(key=lambda entry: -entry[1].picks * entry[1].blocks)
        return [(key, one.blocks) for key, one in hot[:most]]

    def _make_room(self) -> int:
        if len(self._counted) < MOST_PREFIXES:
            return 0
        rarest = min(self._counted, key=lambda key: self._counted[key].picks)
        return self._counted.pop(rarest).picks

    def _fade(self) -> None:
        self._picks = 0
        for key, one in list(self._counted.items()):
            one.picks //= 2
            if not one.picks:
                del self._counted[key]
