"""The radix tree over block keys: path-compressed, with one table of first keys for all of it.

A chained key stands for its whole prefix. So the key after an edge's last one names the next edge
wherever it hangs (one table of first keys serves the whole tree), comparing an edge's *last* key
decides the whole edge, and where a query leaves an edge is found by bisection.

Nothing here is visible to Python's garbage collector: what holds the edges, which it does not see
either, are dicts with keys of plain bytes, and arrays. A collection takes the same time however
large the tree is. The table of first keys is 256 dicts, so that none grows so large that its
resizing is felt.
"""

import numpy as np
import numpy.typing as npt

from extproc.index.edge import SURE_GPU, Edge, More, Tenancy
from extproc.index.store import CHUNK, Store
from extproc.index.table import TAG_BITS, TAG_MASK, KeyTable
from extproc.terms import KEY_BYTES, BlockKey

MAX_EDGE = 1024
"""Most blocks of an edge: bounds what a split, an append and a search in one copy and read."""


class Tree:
    """Edges by their first key and by id, and the table of all blocks."""

    def __init__(self) -> None:
        self.first: tuple[dict[bytes, Edge], ...] = tuple({} for _ in range(256))
        """First key → edge, in the dict of the key's first byte."""
        self.store = Store()
        self.table = KeyTable()
        self.blocks = 0
        self.edges = 0
        self.room = 0
        """Blocks that all instances can hold; 0 if unknown."""
        self.ghosts = 0
        """Slots that hold nothing any more, though edges still name them."""
        self._cleared = 0

    def __del__(self) -> None:
        # A chain of parents that goes in one piece would recurse once per edge, in C.
        for edge in self.store:
            edge.parent = None

    def dismantle(self, edges: int) -> bool:
        """Free a piece of a tree that is out of use, so many edges at most; whether any is left."""
        if self.store.end > 1:
            for edge in self.store.dismantle(edges):
                edge.parent = None
                shard = self.first[edge.keys[0]]
                if shard.get(edge.keys[:KEY_BYTES]) is edge:
                    del shard[edge.keys[:KEY_BYTES]]
            return True
        if self._cleared < len(self.first):
            self.first[self._cleared].clear()  # empty, and as large as it ever was
            self._cleared += 1
            return True
        return self.table.release()

    def find(self, number: BlockKey) -> tuple[Edge, int] | None:
        """The edge that has this block, and its place there; None if there is none. ~2 µs."""
        slots = self.table.slots
        size, view, chunks = slots.size, slots.view, self.store.chunks
        key = number.to_bytes(KEY_BYTES, "little")
        tag = number & TAG_MASK
        at = (number >> 32) * size >> 32
        while entry := view[at]:
            if entry & TAG_MASK == tag:
                edge_id = entry >> TAG_BITS
                edge = chunks[edge_id // CHUNK][edge_id % CHUNK]
                if edge is not None:
                    keys = edge.keys
                    if keys[-KEY_BYTES:] == key:  # the usual case, at the end of a turn
                        return edge, len(keys) // KEY_BYTES - 1
                    if place := _find_in(edge, key):
                        return place
            at += 1
            if at == size:
                at = 0
        for edge_id in self.table.waiting_candidates(key):
            edge = self.store.get(edge_id)
            if edge is not None and (place := _find_in(edge, key)):
                return place
        return None

    def add(self, parent: Edge | None, keys: bytes, tenancy: Tenancy | None) -> Edge:
        """A new edge below `parent`, held by nobody yet."""
        edge = Edge(keys=keys, parent=parent)
        if tenancy is not None:
            edge.own_more().tenancy = tenancy
        self.first[keys[0]][keys[:KEY_BYTES]] = edge
        self.store.add(edge)
        self.table.add(edge.id, keys)
        self.edges += 1
        self.blocks += len(keys) // KEY_BYTES
        if parent is not None:
            parent.own_more().kids += 1
        return edge

    def extend(self, edge: Edge, keys: bytes, slot: int, bit: int, planes: tuple[int, ...]) -> None:
        """Append blocks, which `slot` (its bit: `bit`) has in `planes`, to an edge without kids."""
        if edge.sole(bit) == planes:  # the usual case: it has all of it, before and after
            edge.keys += keys
        else:
            self._extend_shared(edge, keys, slot, bit, planes)
        self.table.add(edge.id, keys)
        self.blocks += len(keys) // KEY_BYTES

    def _extend_shared(
        self, edge: Edge, keys: bytes, slot: int, bit: int, planes: tuple[int, ...]
    ) -> None:
        """`extend` where full holders of the old part, but for `slot`, become partial ones."""
        if not edge.has(slot):
            edge.welcome(slot)
        old = edge.size
        for plane in range(4):
            if edge.plane(plane) is not None:
                edge.own_plane(plane).grow(old, bit if plane in planes else 0)
        edge.keys += keys
        added = (1 << edge.size) - (1 << old)
        for plane in planes:
            cover = edge.own_plane(plane)
            if not cover.full & bit:
                cover.put(slot, cover.get(slot, old) | added, edge.size)

    def trim(self, edge: Edge, blocks: int) -> None:
        """An edge that one slot alone has all of, and nothing is below, keeps so many blocks."""
        self.blocks -= edge.size - blocks
        edge.keys = edge.keys[: blocks * KEY_BYTES]

    def split(self, edge: Edge, at: int) -> Edge:
        """Cut before block `at`: `edge` stays the lower part, the new upper part is returned.

        Stamps stay with the lower part; the caller hands them out.
        """
        cut = at * KEY_BYTES
        upper = Edge(keys=edge.keys[:cut], parent=edge.parent)
        upper.more = More(kids=1, tenancy=edge.tenancy)
        size, ghosts = edge.size, self.ghosts
        on_gpu = edge.cut(at, size, ghosts)
        upper.full, upper.part = on_gpu.full, on_gpu.part
        if edge.sure is not None:
            upper.sure = edge.own_plane(SURE_GPU).cut(at, size, ghosts)
        if edge.slow is not None:
            upper.more.slow = {p: cover.cut(at, size, ghosts) for p, cover in edge.slow.items()}
        upper.tidy()
        edge.tidy()
        edge.keys = edge.keys[cut:]
        edge.parent = upper
        self.first[upper.keys[0]][upper.keys[:KEY_BYTES]] = upper
        self.first[edge.keys[0]][edge.keys[:KEY_BYTES]] = edge
        self.store.add(upper)
        self.table.add(upper.id, upper.keys)
        self.edges += 1
        return upper

    def agree(self, upper: Edge, edge: Edge) -> bool:
        """Whether an edge and its parent have the same holders, who touched them together."""
        if upper.full != edge.full or upper.size + edge.size > MAX_EDGE:
            return False
        if upper.stamp != edge.stamp if upper.stamps is None else upper.stamps != edge.stamps:
            return False
        for plane in range(4):
            mine, other = upper.plane(plane), edge.plane(plane)
            if mine is None or other is None:
                if mine is not other:
                    return False
            elif mine.full != other.full or mine.part is not None or other.part is not None:
                return False
        return True

    def merge(self, upper: Edge, edge: Edge) -> None:
        """`edge` takes over `upper`, its parent, whose only kid it is and whose holders agree."""
        del self.first[edge.keys[0]][edge.keys[:KEY_BYTES]]
        self.first[upper.keys[0]][upper.keys[:KEY_BYTES]] = edge
        edge.keys = upper.keys + edge.keys
        edge.parent = upper.parent
        self.store.remove(upper)
        self.table.add(edge.id, upper.keys)
        self.edges -= 1

    def exorcise(self, edge: Edge, ghosts: int) -> bool:
        """Let an edge forget these slots; whether it named any. The edge may be gone afterwards."""
        if not edge.full & ghosts and edge.part is None and edge.more is None:
            return False
        found = [slot for slot in edge.holders() if ghosts >> slot & 1]
        if not found:
            return False
        for cover in edge.own_covers():
            cover.without(ghosts)
        for slot in found:
            edge.forget(slot)
            if edge.tenancy is not None:
                edge.tenancy.held.pop(slot, None)
        edge.tidy()
        self.prune(edge)
        return True

    def prune(self, edge: Edge) -> None:
        """Forget what nobody holds at the end of this branch, up to what somebody does."""
        at: Edge | None = edge
        while at is not None and not at.kids:
            if at.full:
                return
            covers = at.own_covers()
            reach = max(cover.reach(at.size) for cover in covers)
            self.blocks -= at.size - reach
            if reach:
                if reach < at.size:
                    at.keys = at.keys[: reach * KEY_BYTES]
                    for cover in covers:
                        cover.shrink(reach)
                return
            shard = self.first[at.keys[0]]
            if shard.get(at.keys[:KEY_BYTES]) is at:
                del shard[at.keys[:KEY_BYTES]]
            self.store.remove(at)
            self.edges -= 1
            at = at.parent
            if at is not None:
                at.own_more().kids -= 1
                at.tidy()

    def work(self) -> bool:
        """One slice of upkeep of the table of all blocks; whether more is to do."""
        table = self.table
        table.work(self._run, self.blocks, self.room)
        return table.rebuilding or table.waiting > 0

    def _run(self, start: int, wanted: int) -> tuple[int, bytes, npt.NDArray[np.uint32]]:
        """Keys of the edges from an id on, for a new table."""
        store = self.store
        parts, ids, sizes = [], [], []
        found = looked = 0
        while start < store.end and found < wanted and looked < wanted:
            edge = store.get(start)
            if edge is not None:
                parts.append(edge.keys)
                ids.append(start)
                sizes.append(edge.size)
                found += edge.size
            start += 1
            looked += 1
        owners = np.repeat(np.array(ids, np.uint32), np.array(sizes, np.int64))
        return (start if start < store.end else 0), b"".join(parts), owners


def _find_in(edge: Edge, key: bytes) -> tuple[Edge, int] | None:
    at = edge.keys.find(key)
    while at % KEY_BYTES and at > 0:
        at = edge.keys.find(key, at + 1)
    return (edge, at // KEY_BYTES) if at >= 0 else None
