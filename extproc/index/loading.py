"""An index from a snapshot, in slices, beside whatever answers meanwhile."""

from array import array
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice

import numpy as np

from extproc.errors import HomingError
from extproc.index.cover import decode
from extproc.index.facts import Tier
from extproc.index.holdings import Holdings, block_sum
from extproc.index.instance import PLANES, TIERS, Instance
from extproc.index.roster import Roster
from extproc.index.scope import Scopes
from extproc.index.snapshot import ALL, FOLD_VERSION, SOME, Chunk, Edges, Head, Plane
from extproc.index.tree import Edge, Tree
from extproc.terms import KEY_BYTES, BlockKey

_SLICE = 400
"""Edges that one slice links, puts in order or looks at again."""


class SnapshotError(HomingError):
    """A snapshot that cannot be loaded: damaged, incomplete, or of another version."""


class Loader:
    """Builds what a `PrefixIndex` consists of. Raises SnapshotError; nothing else is touched."""

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
        self._parents = array("Q")
        self._tails: list[list[tuple[int, int, int, int]]] = []

    def slices(self, chunks: Iterable[Chunk]) -> Iterator[int]:
        """All the work, a slice between any two results: how many blocks are loaded so far."""
        for _ in self.tree.table.reserve(self._head.blocks):
            yield 0
        for chunk in chunks:
            if not isinstance(chunk, Edges):
                raise SnapshotError("a snapshot has one head")
            try:
                self._add(chunk)
            except (ValueError, IndexError, OverflowError, RuntimeError) as fault:
                raise SnapshotError(f"columns that do not fit: {type(fault).__name__}") from None
            yield self.tree.blocks
        yield from self._link()
        yield from self._order()
        yield from self._check()
        digest = sum(i.digest() for i in self._instances) & (2**64 - 1)
        if digest != self._head.digest:
            raise SnapshotError("the loaded index is not the one that was saved: digests differ")

    def _add(self, chunk: Edges) -> None:
        """The edges of one piece with their holders, not linked yet."""
        sizes = array("I", chunk.sizes)
        parents = array("Q", chunk.parents)
        rows = iter(_rows(chunk))
        tree = self.tree
        tenants = chunk.tenants or ("",) * len(sizes)
        if not len(sizes) == len(parents) == len(tenants) == len(array("I", chunk.rows)):
            raise ValueError
        if sum(sizes) * KEY_BYTES != len(chunk.keys):
            raise ValueError
        first_id, at = tree.store.end, 0
        tails: list[tuple[int, int, int, int]] = []
        for size, tenant, count in zip(sizes, tenants, array("I", chunk.rows), strict=True):
            keys = chunk.keys[at : at + size * KEY_BYTES]
            at += size * KEY_BYTES
            edge = Edge(keys=keys)
            if tenant:
                edge.own_more().tenant = tenant
            shard = tree.first[keys[0]]
            if keys[:KEY_BYTES] in shard:
                raise SnapshotError("a block is there twice")
            shard[keys[:KEY_BYTES]] = edge
            tree.store.add(edge)
            for place, stamp, tail, *numbers in islice(rows, count):
                self._hold(edge, self._instances[place], stamp, numbers)
                tails += [(stamp, place, t, edge.id) for t in Tier if tail >> t & 1]
        self._parents += parents
        tree.edges += len(sizes)
        tree.blocks += at // KEY_BYTES
        ids = np.arange(first_id, tree.store.end, dtype=np.uint32)
        tree.table.insert(np.frombuffer(chunk.keys, np.uint64), np.repeat(ids, sizes))
        tails.sort()
        self._tails.append(tails)

    def _hold(self, edge: Edge, instance: Instance, stamp: int, numbers: list[int]) -> None:
        slot, size = instance.slot, edge.size
        if stamp > self._head.position:
            raise ValueError
        edge.welcome(slot)
        edge.set_stamp(slot, stamp)
        for plane, blocks in enumerate(numbers):
            if not blocks:
                continue
            blocks = (1 << size) - 1 if blocks == ALL else blocks
            if blocks >> size:
                raise ValueError
            edge.own_plane(plane).put(slot, blocks, size)
            instance.sums[plane] += block_sum(edge, blocks)
            if plane < TIERS:
                count = blocks.bit_count()
                instance.counts[plane] += count
                if plane == Tier.CPU:
                    self.holdings.on_cpu = True
                if self._scopes.any:
                    self.holdings.count_scopes(instance, edge, count)

    def _link(self) -> Iterator[int]:
        """Every edge gets its parent."""
        store, find = self.tree.store, self.tree.find
        for at, number in enumerate(self._parents, 1):
            if number:
                edge, place = store.get(at), find(BlockKey(number))
                if edge is None or place is None or place[1] != place[0].size - 1:
                    raise SnapshotError("a block's parent is missing")
                edge.parent = place[0]
                place[0].own_more().kids += 1
            if at % _SLICE == 0:
                yield self.tree.blocks

    def _order(self) -> Iterator[int]:
        """The order of use, from every piece's own."""
        store = self.tree.store
        for number, (stamp, place, tier, edge_id) in enumerate(merge(*self._tails), 1):
            instance, edge = self._instances[place], store.get(edge_id)
            assert edge is not None
            instance.tails[tier].put(stamp, edge)
            if self._scopes.any:
                self.holdings.queued(instance, edge, stamp)
            if number % _SLICE == 0:
                yield self.tree.blocks

    def _check(self) -> Iterator[int]:
        """No block is its own ancestor; and blocks that nobody needs go."""
        tree, store = self.tree, self.tree.store
        marks = bytearray(store.end)
        steps = 0
        for at in range(1, store.end):
            edge = above = store.get(at)
            path: list[int] = []
            while above is not None and not marks[above.id]:
                marks[above.id] = 1
                path.append(above.id)
                above = above.parent
                steps += 1
                if steps % _SLICE == 0:
                    yield tree.blocks
            if above is not None and marks[above.id] == 1:
                raise SnapshotError("a block is its own ancestor")
            for seen in path:
                marks[seen] = 2
            if edge is not None and not edge.kids:
                tree.prune(edge)


def _rows(chunk: Edges) -> Iterator[tuple[int, ...]]:
    """Place, stamp, tails and a bitset per plane (`ALL` for all of an edge) of every row."""
    holders = array("I", chunk.holders)
    if len(chunk.planes) != PLANES:
        raise ValueError
    planes = [list(_bitsets(plane)) or [0] * len(holders) for plane in chunk.planes]
    return zip(holders, array("Q", chunk.stamps), chunk.tails, *planes, strict=True)


def _bitsets(plane: Plane) -> Iterator[int]:
    holes = iter(plane.holes)
    for number in array("i", plane.blocks):
        if number == SOME:
            yield int.from_bytes(next(holes), "little")
        else:
            yield number if number == ALL else decode(number)
