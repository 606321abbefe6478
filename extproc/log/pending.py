"""A writer's own facts that the log has not given back, for those who ask meanwhile. Pure.

Usually a few: they are looked at one by one, by the first key of each, which stands for the whole
prefix before it. When the log is slow or away there are many: then they go into indexes of their
own, two generations of them, and one is dropped when all of it has settled.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from extproc.index import (
    Bounds,
    Capacity,
    Depths,
    Dropped,
    Held,
    Joined,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.terms import KEY_BYTES, NO_BLOCK, InstanceId, PackedKeys

RECENT = 64
"""Facts that are looked at one by one; what is older goes into an index."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A `Held` as it was appended: the end of `chain` from block `start` on."""

    ticket: int
    instance: InstanceId
    chain: PackedKeys
    start: int
    tenant: str

    @property
    def head(self) -> bytes:
        """The first key that it adds."""
        at = self.start * KEY_BYTES
        return self.chain[at : at + KEY_BYTES]

    def depth(self, keys: PackedKeys) -> int:
        """Leading blocks that the chain shares with `keys`, which has `head` in its place."""
        low, high = self.start + 1, min(len(self.chain), len(keys)) // KEY_BYTES
        while low < high:
            middle = (low + high + 1) // 2
            at = (middle - 1) * KEY_BYTES
            if self.chain[at : at + KEY_BYTES] == keys[at : at + KEY_BYTES]:
                low = middle
            else:
                high = middle - 1
        return low


class _Generation:
    """Older facts, as an index. until: the last ticket in it."""

    def __init__(self, bounds: Bounds) -> None:
        self.index = PrefixIndex(bounds)
        self.until = 0
        self._joined: set[InstanceId] = set()

    def add(self, entry: _Entry, capacity: int | None) -> None:
        name = entry.instance
        if name not in self._joined:
            self._joined.add(name)
            self.index.apply(Joined(name, 1))
            if capacity is not None:
                self.index.apply(Capacity(name, Tier.GPU, capacity))
        held = Held(name, Tier.GPU, NO_BLOCK, entry.chain, Source.PICK, entry.tenant)
        self.index.apply(held)
        self.until = max(self.until, entry.ticket)


class Pending:
    """What was appended and has not settled, by ticket.

    bounds: of each generation. capacity: blocks of an instance, None where unknown.
    """

    def __init__(
        self, bounds: Bounds, capacity: Callable[[InstanceId], int | None] = lambda _: None
    ) -> None:
        self._bounds = bounds
        self._capacity = capacity
        self._recent: deque[_Entry] = deque()
        self._heads: dict[int, dict[bytes, list[_Entry]]] = {}
        self._older: _Generation | None = None
        self._newer: _Generation | None = None

    def __bool__(self) -> bool:
        return bool(self._recent or self._newer or self._older)

    def add(
        self, ticket: int, instance: InstanceId, chain: PackedKeys, start: int, tenant: str
    ) -> None:
        """The instance is expected to hold all of `chain`, whose blocks from `start` on are new."""
        entry = _Entry(ticket, instance, chain, start, tenant)
        if not entry.head:
            return
        self._recent.append(entry)
        self._heads.setdefault(start, {}).setdefault(entry.head, []).append(entry)
        if len(self._recent) > RECENT:
            self._age(self._recent.popleft())

    def retract(self, dropped: Dropped) -> None:
        """Some of it is taken back."""
        for entry in list(self._recent):
            if entry.instance == dropped.instance and dropped.keys.startswith(entry.head):
                self._recent.remove(entry)
                self._unlist(entry)
        for generation in self._generations():
            generation.index.apply(dropped)

    def settle(self, ticket: int) -> None:
        """Everything up to this ticket came back, or never will."""
        while self._recent and self._recent[0].ticket <= ticket:
            self._unlist(self._recent.popleft())
        if self._older is not None and self._older.until <= ticket:
            self._older = None
        if self._newer is not None and self._newer.until <= ticket:
            self._newer = None

    def clear(self) -> None:
        """Forget all of it."""
        self._recent.clear()
        self._heads.clear()
        self._older = self._newer = None

    def deepen(self, keys: PackedKeys, found: dict[InstanceId, Depths]) -> dict[InstanceId, Depths]:
        """What a look-up found, with what is pending: the same mapping where that adds nothing.

        O(different starts among RECENT), and a look-up in each generation.
        """
        if not self:
            return found
        deepest: dict[InstanceId, int] = {}
        for start, heads in self._heads.items():
            at = start * KEY_BYTES
            for entry in heads.get(keys[at : at + KEY_BYTES], ()):
                depth = entry.depth(keys)
                deepest[entry.instance] = max(depth, deepest.get(entry.instance, 0))
        for generation in self._generations():
            for instance, held in generation.index.match(keys).items():
                deepest[instance] = max(held.gpu, deepest.get(instance, 0))
        deeper = {
            instance: Depths(depth, max(depth, found[instance].any if instance in found else 0))
            for instance, depth in deepest.items()
            if instance not in found or depth > found[instance].gpu
        }
        return {**found, **deeper} if deeper else found

    def _age(self, entry: _Entry) -> None:
        self._unlist(entry)
        if self._older is None:
            self._older, self._newer = self._newer, None
        if self._newer is None:
            self._newer = _Generation(self._bounds)
        self._newer.add(entry, self._capacity(entry.instance))

    def _unlist(self, entry: _Entry) -> None:
        heads = self._heads[entry.start]
        entries = heads[entry.head]
        entries.remove(entry)
        if not entries:
            del heads[entry.head]
        if not heads:
            del self._heads[entry.start]

    def _generations(self) -> Iterator[_Generation]:
        return (one for one in (self._older, self._newer) if one is not None)
