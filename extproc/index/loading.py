"""An index from a snapshot, in slices, beside whatever answers meanwhile."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from extproc.errors import HomingError
from extproc.index.cover import decode
from extproc.index.edge import HELD_CPU, HELD_GPU, SURE_CPU, SURE_GPU, Edge, alone
from extproc.index.facts import Tier
from extproc.index.holdings import Holdings, block_sum
from extproc.index.instance import Instance
from extproc.index.roster import Roster
from extproc.index.scope import Scopes
from extproc.index.snapshot import ALL, FOLD_VERSION, SOME, Chunk, Edges, Head
from extproc.index.sums import PLANES, TIERS
from extproc.index.tree import Tree
from extproc.terms import KEY_BYTES, BlockKey

_SLICE = 256
"""Edges that one slice links or looks at again."""

_SORTED = 4096
"""Entries of queues that one slice sorts roughly."""

_BUCKET = 256
"""Entries of queues that one slice sorts and files, on average."""

_SAMPLE = 8192
"""Entries by which the buckets are laid out."""

_EXPECTED, _CONFIRMED = (HELD_GPU,), (HELD_GPU, SURE_GPU)


class SnapshotError(HomingError):
    """A snapshot that cannot be loaded: damaged, incomplete, or of another version."""


class Loader:
    """Builds what a `PrefixIndex` consists of. Raises SnapshotError; nothing else is touched.

    Costs 4 µs an edge, 0.1 µs a block, and while it works 24 bytes an edge beyond the index itself.
    """

    def __init__(self, head: Chunk | None, scopes: Scopes) -> None:
        if not isinstance(head, Head):
            raise SnapshotError("a snapshot begins with its head")
        if head.version != FOLD_VERSION:
            raise SnapshotError(f"the snapshot is of version {head.version}, not {FOLD_VERSION}")
        self._head = head
        self._scopes = scopes
        self.tree = Tree()
        self.roster = Roster()
        self.holdings = Holdings(self.tree, self.roster, scopes)
        self.holdings.now = head.position
        self.holdings.evicted.update(head.evicted)
        self.holdings.refused.update(head.refused)
        self._instances: list[Instance] = []
        for state in head.instances:
            instance = self.roster.place(state.name, state.block_size, state.endpoint)
            instance.limits = list(state.limits)
            self._instances.append(instance)
        self._parents = np.empty(0, np.uint64)
        # Entries of the queues: stamp, place of the instance and tier, edge.
        self._stamps = np.empty(0, np.uint64)
        self._queues = np.empty(0, np.uint32)
        self._edges = np.empty(0, np.uint32)
        self._filled = 0

    def slices(self, chunks: Iterable[Chunk]) -> Iterator[int]:
        """All the work, a slice between any two results: how many blocks are loaded so far."""
        try:
            # Arrays that grew would be copied, all of them in the same slices.
            self._parents = np.empty(self._head.edges, np.uint64)
            self._stamps = np.empty(self._head.tails, np.uint64)
            self._queues = np.empty(self._head.tails, np.uint32)
            self._edges = np.empty(self._head.tails, np.uint32)
            for _ in self.tree.table.reserve(self._head.blocks):
                yield 0
        except (ValueError, OverflowError, OSError, MemoryError) as fault:
            raise SnapshotError(f"no room for its blocks: {type(fault).__name__}") from None
        for chunk in chunks:
            if not isinstance(chunk, Edges):
                raise SnapshotError("a snapshot has one head")
            try:
                self._add(chunk)
            except (ValueError, IndexError, OverflowError, StopIteration) as fault:
                raise SnapshotError(f"columns that do not fit: {type(fault).__name__}") from None
            yield self.tree.blocks
        yield from self._link()
        yield from self._settle()
        yield from self._queue()
        digest = sum(i.digest() for i in self._instances) & (2**64 - 1)
        if digest != self._head.digest:
            raise SnapshotError("the loaded index is not the one that was saved: digests differ")

    def _add(self, chunk: Edges) -> None:
        """The edges of one piece with their holders, not linked and queued yet."""
        sizes, counts = array("I", chunk.sizes), array("I", chunk.rows)
        parents, rows = array("Q", chunk.parents), _Rows(chunk, self._head)
        lengths = sum(sizes) * KEY_BYTES, sum(counts), len(sizes)
        if lengths != (len(chunk.keys), len(rows.holders), len(parents)):
            raise ValueError
        tree, first_id = self.tree, self.tree.store.end
        at = row = 0
        tenants = chunk.tenants or [""] * len(parents)
        for size, count, parent, tenant in zip(sizes, counts, parents, tenants, strict=True):
            keys = chunk.keys[at : at + size * KEY_BYTES]
            edge = Edge(keys=keys)
            if tree.first[keys[0]].setdefault(keys[:KEY_BYTES], edge) is not edge:
                raise SnapshotError("a block is there twice")
            tree.store.add(edge)
            if not parent and (tenancy := self.holdings.tenancy(tenant)):
                edge.own_more().tenancy = tenancy
            if count == 1 and rows.simple(row):
                self._hold_alone(edge, rows, row)
            else:
                for each in range(row, row + count):
                    self._hold(edge, rows, each)
            at += size * KEY_BYTES
            row += count
        ids = np.arange(first_id, tree.store.end, dtype=np.uint32)
        tree.table.insert(np.frombuffer(chunk.keys, np.uint64), np.repeat(ids, sizes))
        tree.edges += len(ids)
        tree.blocks += at // KEY_BYTES
        self._parents[first_id - 1 : tree.store.end - 1] = parents
        edges = np.repeat(ids, counts)
        for tier in Tier:
            tails = np.flatnonzero(np.frombuffer(rows.tails, np.uint8) >> tier & 1)
            piece = slice(self._filled, self._filled + len(tails))
            self._stamps[piece] = np.array(rows.stamps, np.uint64)[tails]
            self._queues[piece] = np.array(rows.holders, np.uint32)[tails] * TIERS + tier
            self._edges[piece] = edges[tails]
            self._filled = piece.stop

    def _hold_alone(self, edge: Edge, rows: "_Rows", row: int) -> None:
        """`_hold` for the usual edge: one instance has all of it on its GPU."""
        instance = self._instances[rows.holders[row]]
        edge.full, edge.stamp = instance.bit, rows.stamps[row]
        confirmed = rows.numbers[SURE_GPU][row] == ALL
        if confirmed:
            edge.sure = alone(instance.bit)
        instance.sums.add(_CONFIRMED if confirmed else _EXPECTED, edge.keys)
        instance.counts[HELD_GPU] += edge.size

    def _hold(self, edge: Edge, rows: "_Rows", row: int) -> None:
        """An instance has some of an edge."""
        instance = self._instances[rows.holders[row]]
        slot, size = instance.slot, edge.size
        edge.welcome(slot)
        edge.set_stamp(slot, rows.stamps[row])
        for plane in range(PLANES):
            blocks = rows.blocks(plane, row, size)
            if not blocks:
                continue
            edge.own_plane(plane).put(slot, blocks, size)
            instance.sums.shift(plane, block_sum(edge, blocks))
            if plane < TIERS:
                instance.counts[plane] += blocks.bit_count()
                if plane == HELD_CPU:
                    self.holdings.on_cpu = True

    def _link(self) -> Iterator[int]:
        """Every edge gets its parent."""
        store, find = self.tree.store, self.tree.find
        parents = memoryview(self._parents)  # type: ignore[arg-type]
        for at in range(1, store.end):
            if number := parents[at - 1]:
                edge, place = store.get(at), find(BlockKey(number))
                if edge is None or place is None or place[1] != place[0].size - 1:
                    raise SnapshotError("a block's parent is missing")
                edge.parent = place[0]
                place[0].own_more().kids += 1
            if at % _SLICE == 0:
                yield self.tree.blocks

    def _queue(self) -> Iterator[int]:
        """The order of use of every instance."""
        store = self.tree.store
        stamps = memoryview(self._stamps)  # type: ignore[arg-type]
        queues = memoryview(self._queues)  # type: ignore[arg-type]
        edges = memoryview(self._edges)  # type: ignore[arg-type]
        for entries in _rising(self._stamps[: self._filled]):
            for entry in entries:
                stamp, edge = stamps[entry], store.get(edges[entry])
                place, tier = divmod(queues[entry], TIERS)
                assert edge is not None
                instance = self._instances[place]
                instance.tails[tier].put(stamp, edge)
                if self._scopes.any:
                    self.holdings.queued(instance, edge, stamp)
            yield self.tree.blocks

    def _settle(self) -> Iterator[int]:
        """No block is its own ancestor; a chain is one tenant's; and what nobody needs goes."""
        tree, store = self.tree, self.tree.store
        marks = bytearray(store.end)
        steps = 0
        for at in range(1, store.end):
            edge = above = store.get(at)
            path: list[Edge] = []
            while above is not None and not marks[above.id]:
                marks[above.id] = 1
                path.append(above)
                above = above.parent
                steps += 1
                if steps % _SLICE == 0:
                    yield tree.blocks
            if above is not None and marks[above.id] == 1:
                raise SnapshotError("a block is its own ancestor")
            for below in reversed(path):
                marks[below.id] = 2
                if above is not None and above.tenancy is not None:
                    below.own_more().tenancy = above.tenancy
                if self._scopes.any:
                    self._count(below)
                above = below
            if edge is not None and not edge.kids:
                tree.prune(edge)

    def _count(self, edge: Edge) -> None:
        """What is held of an edge counts in the bounds."""
        for slot in edge.holders():
            instance = self.roster.slots[slot]
            assert instance is not None
            for tier in Tier:
                if blocks := edge.blocks(tier, slot):
                    self.holdings.count_scopes(instance, edge, blocks.bit_count())


class _Rows:
    """The rows of a piece, and what they say. Raises ValueError where a column does not fit."""

    def __init__(self, chunk: Edges, head: Head) -> None:
        self.holders = array("I", chunk.holders).tolist()
        self.stamps = array("Q", chunk.stamps).tolist()
        self.tails = chunk.tails
        count = len(self.holders)
        self.numbers = [array("i", plane.blocks).tolist() or [0] * count for plane in chunk.planes]
        self._holes = [iter(plane.holes) for plane in chunk.planes]
        self._slow = any(chunk.planes[plane].blocks for plane in (HELD_CPU, SURE_CPU))
        lengths = {count, len(self.stamps), len(self.tails), *map(len, self.numbers)}
        if len(lengths) > 1 or len(self.numbers) != PLANES:
            raise ValueError
        if count and max(self.stamps) > head.position:
            raise ValueError

    def simple(self, row: int) -> bool:
        """Whether the row is of an instance that has all on its GPU, all confirmed or nothing."""
        numbers = self.numbers
        return (
            not self._slow and numbers[HELD_GPU][row] == ALL and numbers[SURE_GPU][row] in (0, ALL)
        )

    def blocks(self, plane: int, row: int, size: int) -> int:
        """The blocks of an edge of that size in a plane, as a bitset. Rows are read in order."""
        number = self.numbers[plane][row]
        if number == ALL:
            return (1 << size) - 1
        if not SOME <= number <= size:
            raise ValueError
        if number != SOME:
            return decode(number)
        blocks = int.from_bytes(next(self._holes[plane]), "little")
        if blocks >> size:
            raise ValueError
        return blocks


def _rising(numbers: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """Places of the numbers from the lowest to the highest, some at a time, in short slices.

    A sample says where to cut their range into buckets; then every piece of the numbers is dealt
    out to the buckets, and then every bucket is sorted.
    """
    count = len(numbers)
    if not count:
        return
    sample = np.sort(numbers[:: count // _SAMPLE + 1])
    bounds = sample[:: max(1, len(sample) * _BUCKET // count)]
    buckets = np.empty(count, np.uint32)
    sizes = np.zeros(len(bounds) + 1, np.int64)
    for start in range(0, count, _SORTED):
        piece = slice(start, start + _SORTED)
        buckets[piece] = np.searchsorted(bounds, numbers[piece], "right")
        sizes += np.bincount(buckets[piece], minlength=len(sizes))
        yield []
    ends = np.cumsum(sizes)
    free = ends - sizes
    places = np.empty(count, np.uint32)
    for start in range(0, count, _SORTED):
        of = buckets[start : start + _SORTED]
        order = np.argsort(of, kind="stable")
        of = of[order]
        places[free[of] + np.arange(len(of)) - np.searchsorted(of, of)] = order + start
        free += np.bincount(of, minlength=len(free))
        yield []
    for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
        found = places[start:end]
        yield found[np.argsort(numbers[found])].tolist()
