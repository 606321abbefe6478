"""The radix tree over block keys: path-compressed, with one dict for all of it.

A chained key stands for its whole prefix. So the key after an edge's last one names the next edge
wherever it hangs (`first` serves the whole tree), comparing an edge's *last* key decides the whole
edge, and where a query leaves an edge is found by bisection.

Edges know their parent, not their children: no reference cycles, nothing for the collector.
"""

from extproc.index.cover import Cover
from extproc.terms import KEY_BYTES

PLANES = 4
"""What is kept per edge: held on GPU, held on CPU, and for each of them what is confirmed."""


class Edge:
    """A run of blocks without a branch.

    keys: packed, root first. start: depth of its first block in the chain. kids: edges below.
    covers: one per plane. stamps: slot → position in the log of the last fact that touched it;
    one for the whole edge, because a touch that ends inside what a slot holds splits the edge.
    """

    __slots__ = ("covers", "keys", "kids", "parent", "size", "stamps", "start")

    def __init__(self, keys: bytes, start: int, parent: "Edge | None") -> None:
        self.keys = keys
        self.size = len(keys) // KEY_BYTES
        self.start = start
        self.parent = parent
        self.kids = 0
        self.covers = [Cover() for _ in range(PLANES)]
        self.stamps: dict[int, int] = {}

    @property
    def end(self) -> int:
        """Depth after its last block."""
        return self.start + self.size


def common_prefix(edge: bytes, query: bytes, at: int, limit: int) -> int:
    """Blocks that `edge` and `query[at:]` share, at most `limit`. O(log limit).

    Both are runs of chained keys: where two keys are equal, all before them are.
    """
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) >> 1
        b = middle * KEY_BYTES
        if edge[b - KEY_BYTES : b] == query[at + b - KEY_BYTES : at + b]:
            low = middle
        else:
            high = middle - 1
    return low


class Tree:
    """Edges by their first key, and every block's edge."""

    def __init__(self) -> None:
        self.first: dict[bytes, Edge] = {}
        self.edge_of: dict[bytes, Edge] = {}

    def find(self, key: bytes) -> tuple[Edge, int] | None:
        """The edge that has this block, and its place there; None if there is none."""
        edge = self.edge_of.get(key)
        if edge is None:
            return None
        at = edge.keys.find(key)
        while at % KEY_BYTES:
            at = edge.keys.find(key, at + 1)
        return edge, at // KEY_BYTES

    def add(self, parent: Edge | None, keys: bytes) -> Edge:
        """A new edge below `parent`, held by nobody yet."""
        edge = Edge(keys, parent.end if parent else 0, parent)
        self.first[keys[:KEY_BYTES]] = edge
        self._own(edge, keys)
        if parent:
            parent.kids += 1
        return edge

    def extend(self, edge: Edge, keys: bytes) -> None:
        """Append blocks to an edge without kids; who held all of it holds its old part."""
        old = edge.size
        edge.keys += keys
        edge.size += len(keys) // KEY_BYTES
        self._own(edge, keys)
        for cover in edge.covers:
            cover.resize(old, edge.size)

    def split(self, edge: Edge, at: int) -> Edge:
        """Cut before block `at`: `edge` stays the lower part, the new upper part is returned."""
        cut = at * KEY_BYTES
        upper = Edge(edge.keys[:cut], edge.start, edge.parent)
        upper.kids = 1
        upper.covers = [cover.split(at, edge.size) for cover in edge.covers]
        self.first[upper.keys[:KEY_BYTES]] = upper
        self._own(upper, upper.keys)
        edge.keys, edge.size = edge.keys[cut:], edge.size - at
        edge.start += at
        edge.parent = upper
        self.first[edge.keys[:KEY_BYTES]] = edge
        stamps, edge.stamps = edge.stamps, {}
        for slot, stamp in stamps.items():
            for part in (upper, edge):
                if any(cover.get(slot, part.size) for cover in part.covers):
                    part.stamps[slot] = stamp
        return upper

    def prune(self, edge: Edge) -> None:
        """Forget what nobody holds at the end of this branch, up to what somebody does."""
        at: Edge | None = edge
        while at is not None and not at.kids:
            if any(cover.full for cover in at.covers):
                return
            held = max((b.bit_length() for c in at.covers for b in c.part.values()), default=0)
            for b in range(held * KEY_BYTES, len(at.keys), KEY_BYTES):
                key = at.keys[b : b + KEY_BYTES]
                if self.edge_of.get(key) is at:
                    del self.edge_of[key]
            if held:
                for cover in at.covers:
                    cover.resize(at.size, held)
                at.keys, at.size = at.keys[: held * KEY_BYTES], held
                return
            if self.first.get(at.keys[:KEY_BYTES]) is at:
                del self.first[at.keys[:KEY_BYTES]]
            at = at.parent
            if at is not None:
                at.kids -= 1

    def _own(self, edge: Edge, keys: bytes) -> None:
        for b in range(0, len(keys), KEY_BYTES):
            self.edge_of[keys[b : b + KEY_BYTES]] = edge
