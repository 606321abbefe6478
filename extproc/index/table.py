"""Where a block is: an open-addressing table from block key to the edge that has it.

Most blocks are found without it (by the first key of an edge). It serves an engine that removes a
block in the middle of a path, and a fact that starts there. A Python dict of every block would cost
100 B a block; this costs 6 to 11.

A slot holds an edge's id (26 bits) and six bits of the key, so what it gives are candidates: the
caller looks for the key in the edge. That makes removal free: a block that has gone leaves its slot
behind, and slots of blocks that moved to another edge are left behind likewise (the block is added
again under its new edge). They go when the table is built anew, which is also how it grows.

Keys are added in batches, because numpy needs 50 ns for a key in a batch and 10 µs for a single
one. Those not yet in the table wait in one buffer, which is searched too. Building anew happens
beside the old table, a slice at a time: no call takes longer than a millisecond or two.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from mmap import MADV_DONTNEED, mmap

import numpy as np
import numpy.typing as npt

from extproc.terms import KEY_BYTES

BATCH_KEYS = 2048
"""Keys that are put into the table together."""

BUILD_SLICES = 5
"""Slices of a new table, a batch each, for every batch into the old one: it is ready in time."""

_SMALLEST = 1 << 15
_FULL = 0.68
"""Share of used slots at which a new table is begun."""
_FRESH = 0.35
"""Share of used slots that a new table starts with, where it is not known how many will come."""
_LEAST_FRESH = 0.10
"""The same where the instances' capacities say that many more will come."""

_PIECE_BYTES = 1 << 19
"""Memory that one slice asks the system for, or gives back."""

TAG_BITS = 6
"""Bits of the key in a slot: of 64 keys that are looked at in vain, one costs a search."""
TAG_MASK = (1 << TAG_BITS) - 1

_Keys = npt.NDArray[np.uint64]
_Ids = npt.NDArray[np.uint32]


_HALF = np.uint64(32)
_WINDOW = 16
"""Slots that a key looks at together."""
_NEVER_FREE = 0xFFFFFFFF


class Slots:
    """One table. A key's first slot follows from its upper half, its tag from its lowest bits.

    A slot is an edge's id and a tag, 0 is empty. A window of slots beyond the last one is never
    free, so that looking at a window needs no wrapping.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._memory = mmap(-1, (size + _WINDOW) * 4)
        self._at = 0
        self._slots: _Ids = np.frombuffer(self._memory, np.uint32)
        self._slots[size:] = _NEVER_FREE
        # Windows as opaque items of 64 bytes: numpy fetches those three times as fast as rows.
        self._windows = np.ndarray(size, np.dtype((np.void, 4 * _WINDOW)), self._memory, 0, 4)
        self.view = memoryview(self._slots)  # type: ignore[arg-type]
        """The slots, fast to read one at a time."""

    def insert(self, keys: _Keys, ids: _Ids) -> None:
        """Linear probing for all keys at once, a window each; who finds no free slot looks on."""
        table = self._slots
        places = (((keys >> _HALF) * np.uint64(self.size)) >> _HALF).astype(np.int64)
        entries = ids << np.uint32(TAG_BITS) | (keys & np.uint64(TAG_MASK)).astype(np.uint32)
        self.used += len(keys)
        assert self.used < self.size, "a full table would be searched for ever"
        while True:
            windows = self._windows[places].view(np.uint32).reshape(-1, _WINDOW)
            here = places + (windows != 0).argmin(axis=1)
            free = table[here] == 0
            if free.all():
                table[here] = entries
            else:
                table[here[free]] = entries[free]
                here[~free] += _WINDOW
                here[here >= self.size] = 0
            # Several may have wanted one slot: one of them has it, or all that are written alike.
            lost = np.flatnonzero(table[here] != entries)
            if not lost.size:
                return
            places, entries = here[lost], entries[lost]

    def prepare(self) -> bool:
        """Have the system provide a piece of the memory; whether all of it is there.

        Left to the first keys that go into the table, all over it, that is one long pause.
        """
        stop = self._at + _PIECE_BYTES // 4
        self._slots[self._at : min(stop, self.size)] = 0
        self._at = stop
        return stop >= self.size

    def release(self) -> bool:
        """Give a piece of the memory back; whether all of it is. The table must not be used."""
        self._at = max(0, self._at - _PIECE_BYTES // 4)
        self._memory.madvise(MADV_DONTNEED, self._at * 4)
        return not self._at

    @property
    def nbytes(self) -> int:
        """Bytes of the slots."""
        return self._slots.nbytes


class KeyTable:
    """Block key → ids of edges that may have it."""

    def __init__(self) -> None:
        self.slots = Slots(_SMALLEST)
        """The table that answers."""
        self._waiting = bytearray()
        self._owners: list[int] = []
        self._ends: list[int] = []
        self._next: Slots | None = None
        self._cursor = 0
        self._old: Slots | None = None
        self._due_bytes = BATCH_KEYS * KEY_BYTES
        self.due = False
        """Whether enough keys wait for it to be time for a slice of work."""

    @property
    def waiting(self) -> int:
        """Keys that are not in the table yet."""
        return len(self._waiting) // KEY_BYTES

    @property
    def rebuilding(self) -> bool:
        """Whether a new table is being built or an old one taken down."""
        return self._next is not None or self._old is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the table, the one being built, and the keys that wait."""
        return self.slots.nbytes + (self._next.nbytes if self._next else 0) + len(self._waiting)

    def reserve(self, blocks: int) -> Iterator[None]:
        """Make an empty table ready for so many blocks, a piece of its memory between results."""
        if blocks < 0:
            raise ValueError("fewer than no blocks")
        slots = Slots(max(_SMALLEST, int(blocks / _FRESH)))
        while not slots.prepare():
            yield
        self.slots = slots

    def insert(self, keys: _Keys, ids: _Ids) -> None:
        """Put blocks into a table that was made ready for them."""
        if self.slots.used + len(keys) > self.slots.size * _FULL:
            raise ValueError("more blocks than there was to be room for")
        self.slots.insert(keys, ids)

    def add(self, edge_id: int, keys: bytes) -> None:
        """These blocks, at most a batch, are in that edge now. O(keys), copied."""
        waiting = self._waiting
        waiting += keys
        self._owners.append(edge_id)
        self._ends.append(len(waiting))
        if len(waiting) >= self._due_bytes:
            self.due = True

    def work(
        self, run: Callable[[int, int], tuple[int, bytes, _Ids]], live: int, room: int
    ) -> None:
        """One slice: a batch of waiting keys, or else a piece of a table being built or taken down.

        run: (from id, keys wanted) → (next id, keys, an id per key); next id 0 at the end.
        live: blocks in the tree, which is what a new table has to hold. room: blocks that there can
        be, by the instances' capacities; 0 if unknown.
        """
        live += self.waiting  # they go in twice, once with their edges
        if self._next is not None and live > _FULL * self._next.size:
            self._next = None  # more has come than it was made for
        if self._next is None and self.slots.used + self.waiting > _FULL * self.slots.size:
            fresh = max(live / _FRESH, min(room / _FULL, live / _LEAST_FRESH))
            self._next = Slots(max(_SMALLEST, int(fresh)))
            self._cursor = 0
        full = self._next is not None and self.slots.used + 2 * BATCH_KEYS > self.slots.size
        if self.waiting and not full and (self.waiting >= BATCH_KEYS or not self.rebuilding):
            self._insert_batch()
        elif self._old is not None:
            if self._old.release():
                self._old = None
        else:
            self._build(run)
        due = BATCH_KEYS
        if self.rebuilding:
            due = min(BATCH_KEYS, self.waiting + BATCH_KEYS // (BUILD_SLICES + 1))
        self._due_bytes = due * KEY_BYTES
        self.due = self.waiting >= due

    def _build(self, run: Callable[[int, int], tuple[int, bytes, _Ids]]) -> None:
        """One slice of the new table, if there is one; the last slice puts it into service."""
        if self._next is None:
            return
        if not self._cursor:
            self._cursor = 1 if self._next.prepare() else 0
            return
        self._cursor, keys, ids = run(self._cursor, BATCH_KEYS)
        if keys:
            self._next.insert(np.frombuffer(keys, np.uint64), ids)
        if not self._cursor:
            self._old, self.slots, self._next = self.slots, self._next, None

    def _insert_batch(self) -> None:
        owners, ends = self._owners, self._ends
        count = max(1, bisect_right(ends, BATCH_KEYS * KEY_BYTES))
        cut = ends[count - 1]
        keys = np.frombuffer(bytes(self._waiting[:cut]), np.uint64)
        lengths = np.diff([0, *ends[:count]]).astype(np.int64) // KEY_BYTES
        ids = np.repeat(np.array(owners[:count], np.uint32), lengths)
        self.slots.insert(keys, ids)
        if self._next is not None and self._cursor:
            self._next.insert(keys, ids)
        del self._waiting[:cut]
        self._owners = owners[count:]
        self._ends = [end - cut for end in ends[count:]]

    def release(self) -> bool:
        """Give back a piece of a table that is out of use; whether any is left."""
        for slots in (self._old, self._next, self.slots):
            if slots is not None and not slots.release():
                return True
        return False

    def waiting_candidates(self, key: bytes) -> Iterator[int]:
        """Ids of edges that the block waits for. O(waiting keys)."""
        at = self._waiting.find(key)
        while at >= 0:
            if at % KEY_BYTES == 0:
                yield self._owners[bisect_right(self._ends, at)]
            at = self._waiting.find(key, at + 1)
