"""What was touched when: entries by stamp, the oldest at hand."""

from bisect import bisect_right
from typing import Generic, TypeVar

T = TypeVar("T")

_SHARD = 2048
"""Entries that a dict has when the next one is begun."""


class Order(Generic[T]):
    """Stamp → entry, with the oldest stamp at hand.

    Stamps are added in rising order, so a dict's own order is theirs. An entry may be replaced
    under its stamp and removed at any time; a removed stamp must not come back.

    Entries lie in several dicts, each with a run of stamps: none is so large that its resizing is
    felt, nor that the gaps are which removed entries leave in it. The newest closes its gaps when
    it grows, an older one is written anew whenever its size has halved.

    squares: sum of the squares of all stamps, a fingerprint for the digest. One stamp that differs
    never hides in it, two only by a coincidence of one in position².
    """

    __slots__ = ("_newest", "_shards", "_since", "_starts", "squares")

    def __init__(self) -> None:
        self.squares = 0
        self._newest: dict[int, T] = {}
        self._since = 0
        self._shards = [self._newest]
        self._starts = [self._since]

    def __contains__(self, stamp: int) -> bool:
        return stamp in self._shard(stamp)

    def __getitem__(self, stamp: int) -> T:
        return self._shard(stamp)[stamp]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, stamp: int) -> T | None:
        """The entry with this stamp, None if there is none."""
        return self._shard(stamp).get(stamp)

    def put(self, stamp: int, entry: T) -> None:
        """Add an entry with the newest stamp, or replace one."""
        shard = self._shard(stamp)
        if stamp in shard:
            shard[stamp] = entry
        else:
            self.squares += stamp * stamp
            if len(self._newest) >= _SHARD:
                shard = self._begin(stamp)
            shard[stamp] = entry

    def move(self, old: int, new: int, entry: T) -> bool:
        """Add this entry with the newest stamp; whether it was there with the old one."""
        newest = self._newest
        shard = newest if old >= self._since else self._shard(old)
        known = shard.get(old) is entry
        if known:
            del shard[old]
            self.squares += (new - old) * (new + old)
            if shard is not newest:
                self._shrunk(shard, old)
        else:
            self.squares += new * new
        if len(newest) >= _SHARD:
            newest = self._begin(new)
        newest[new] = entry
        return known

    def drop(self, stamp: int) -> None:
        """Remove the entry with this stamp, if there is one."""
        shard = self._shard(stamp)
        if shard.pop(stamp, None) is not None:
            self.squares -= stamp * stamp
            if shard is not self._newest:
                self._shrunk(shard, stamp)

    def oldest(self) -> int:
        """The oldest stamp that has an entry; 0 if there is none."""
        return next(iter(self._shards[0]), 0)

    def shards(self) -> list[dict[int, T]]:
        """The dicts that this is made of: who has no more use for it frees them one by one."""
        return self._shards

    def _shard(self, stamp: int) -> dict[int, T]:
        if stamp >= self._since:
            return self._newest
        return self._shards[bisect_right(self._starts, stamp) - 1]

    def _begin(self, stamp: int) -> dict[int, T]:
        """A new dict, from this stamp on."""
        self._newest, self._since = {}, stamp
        self._shards.append(self._newest)
        self._starts.append(stamp)
        return self._newest

    def _shrunk(self, shard: dict[int, T], stamp: int) -> None:
        """An older dict, which this stamp was in, has an entry less."""
        size = len(shard)
        if size & (size - 1):
            return
        place = bisect_right(self._starts, stamp) - 1
        if size:
            self._shards[place] = dict(shard)
        else:
            del self._shards[place], self._starts[place]
