"""What was touched when: entries by stamp, the oldest at hand."""

from collections import deque
from heapq import merge
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

_AHEAD = 64
_SHARDS = 31
"""A prime, so that instances that are touched in turn use all shards."""


class Order(Generic[T]):
    """Stamp → entry, with the oldest stamp at hand.

    Stamps are added in rising order, so a dict's own order is theirs. An entry may be replaced
    under its stamp and removed at any time; a removed stamp must not come back.

    Entries lie in several dicts, so that none grows so large that its resizing is felt. A dict
    skips its removed entries one by one, so the oldest stamps are read many at a time: `oldest` is
    O(1) on average.

    squares: sum of the squares of all stamps, a fingerprint for the digest. One stamp that differs
    never hides in it, two only by a coincidence of one in position².
    """

    __slots__ = ("_ahead", "_shards", "squares")

    def __init__(self) -> None:
        self.squares = 0
        self._shards: tuple[dict[int, T], ...] = tuple({} for _ in range(_SHARDS))
        self._ahead: deque[int] = deque()

    def __contains__(self, stamp: int) -> bool:
        return stamp in self._shards[stamp % _SHARDS]

    def __getitem__(self, stamp: int) -> T:
        return self._shards[stamp % _SHARDS][stamp]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, stamp: int) -> T | None:
        """The entry with this stamp, None if there is none."""
        return self._shards[stamp % _SHARDS].get(stamp)

    def put(self, stamp: int, entry: T) -> None:
        """Add an entry with the newest stamp, or replace one."""
        shard = self._shards[stamp % _SHARDS]
        if stamp not in shard:
            self.squares += stamp * stamp
        shard[stamp] = entry

    def move(self, old: int, new: int, entry: T) -> bool:
        """Add this entry with the newest stamp; whether it was there with the old one."""
        shard = self._shards[old % _SHARDS]
        known = shard.get(old) is entry
        if known:
            del shard[old]
            self.squares += (new - old) * (new + old)
        else:
            self.squares += new * new
        self._shards[new % _SHARDS][new] = entry
        return known

    def drop(self, stamp: int) -> None:
        """Remove the entry with this stamp, if there is one."""
        if self._shards[stamp % _SHARDS].pop(stamp, None) is not None:
            self.squares -= stamp * stamp

    def oldest(self) -> int:
        """The oldest stamp that has an entry; 0 if there is none."""
        ahead = self._ahead
        while ahead and ahead[0] not in self:
            ahead.popleft()
        if not ahead:
            ahead.extend(islice(merge(*self._shards), _AHEAD))
        return ahead[0] if ahead else 0

    def shards(self) -> tuple[dict[int, T], ...]:
        """The dicts that this is made of: who has no more use for it frees them one by one."""
        return self._shards
