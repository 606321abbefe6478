"""The index at one point of the log, as plain data in pieces: what later facts depend on, no more.

A snapshot is one `Head` and then any number of `Edges`, in no promised order, some of them empty.
A `Cut` takes it while facts go on being folded: it walks over the edges in slices, and whoever is
about to change an edge that it has not come to yet hands it over first (`Cut.save`). So all pieces
show the same moment.

Numbers are packed as in `PackedKeys`, little-endian, because a list of a million Python ints costs
more than the index itself.
"""

from array import array
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from msgspec import Struct

from extproc.index.cover import ones
from extproc.index.edge import Edge
from extproc.index.facts import Tier
from extproc.index.roster import Roster
from extproc.index.sums import PLANES
from extproc.index.tree import Tree
from extproc.terms import KEY_BYTES, InstanceId

FOLD_VERSION = 1
"""Rises when the same facts would give another state, or a snapshot has another meaning."""

CHUNK_EDGES = 128
CHUNK_ROWS = 256
CHUNK_BLOCKS = 4096
"""What makes a piece full, so that one is a slice of work to write and to load."""

CHUNK_BYTES = 1 << 19
"""Most bytes in a piece."""

_LOOKS = 1024
"""Places of edges, used or not, that one slice looks at."""

ALL, SOME = -1, -2
"""In `Plane.blocks`: every block of the edge; a bitset in `Plane.holes`."""


class InstanceState(Struct, frozen=True):
    """An instance that has joined. limits: capacity in blocks by tier, None where unknown."""

    name: InstanceId
    block_size: int
    endpoint: str
    limits: tuple[int | None, ...]


class Head(Struct, frozen=True, tag="head"):
    """First piece of a snapshot.

    version: the writer's `FOLD_VERSION`. position: facts folded so far. digest: the index's digest,
    which the loaded index must have too. blocks, edges, tails: at most so many of each follow, so
    that room can be made at once. instances: in the order of joining; `Edges.holders` counts them
    from 0. evicted, refused: the counters of `IndexStats`.
    """

    version: int
    position: int
    digest: int
    blocks: int
    edges: int
    tails: int
    instances: tuple[InstanceState, ...]
    evicted: dict[str, int]
    refused: dict[str, int]


class Plane(Struct, frozen=True):
    """A column of `Edges`: which blocks of the edge.

    blocks: int32 a row: how many from the first one on; `ALL`; or `SOME`, then the next of `holes`
    is a bitset, little-endian. Empty if all are 0.
    """

    blocks: bytes
    holes: tuple[bytes, ...]


class Edges(Struct, frozen=True, tag="edges"):
    """Some edges and who holds them: columns of equal length, one entry an edge or a row.

    An edge: `sizes` (uint32) blocks of `keys` (8 bytes a block), after the block `parents` (uint64,
    0: none), counted for `tenants` (empty if nobody), followed by `rows` (uint32) holders.

    A row, one a holder: `holders` (uint32), its place in `Head.instances`; `stamps` (uint64), the
    fact that touched the edge last for it; `tails` (uint8), bit t set where that fact touched
    nothing deeper that it holds in tier t; and an entry in each of `planes`: held on GPU, held on
    CPU, confirmed on GPU, confirmed on CPU.
    """

    keys: bytes
    sizes: bytes
    parents: bytes
    tenants: tuple[str, ...]
    rows: bytes
    holders: bytes
    stamps: bytes
    tails: bytes
    planes: tuple[Plane, ...]


Chunk: TypeAlias = Head | Edges
"""A piece of a snapshot, at most `CHUNK_BYTES` as it is encoded in msgpack."""


class _Columns:
    """A piece of a snapshot in the making."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.sizes = array("I")
        self.parents: list[bytes] = []
        self.tenants: list[str] = []
        self.rows = array("I")
        self.holders = array("I")
        self.stamps = array("Q")
        self.tails = bytearray()
        self.planes = tuple(array("i") for _ in range(PLANES))
        self.holes: tuple[list[bytes], ...] = tuple([] for _ in range(PLANES))
        self.blocks = 0

    @property
    def full(self) -> bool:
        """Whether it is time for the next piece."""
        return (
            len(self.sizes) >= CHUNK_EDGES
            or len(self.stamps) >= CHUNK_ROWS
            or self.blocks >= CHUNK_BLOCKS
        )

    def sealed(self) -> Edges:
        """The piece as plain data."""
        return Edges(
            keys=b"".join(self.keys),
            sizes=self.sizes.tobytes(),
            parents=b"".join(self.parents),
            tenants=tuple(self.tenants) if any(self.tenants) else (),
            rows=self.rows.tobytes(),
            holders=self.holders.tobytes(),
            stamps=self.stamps.tobytes(),
            tails=bytes(self.tails),
            planes=tuple(
                Plane(column.tobytes() if any(column) else b"", tuple(holes))
                for column, holes in zip(self.planes, self.holes, strict=True)
            ),
        )


_NO_PARENT = bytes(KEY_BYTES)


class Cut:
    """One snapshot being taken. Until it is done, ids of edges must not be used again.

    Costs 2 µs an edge. An edge is written once, by the walk or by whoever changes it before that.
    """

    def __init__(self, tree: Tree, roster: Roster, head: Head) -> None:
        self._head = head
        self._store = tree.store
        self._end = tree.store.end
        self._at = 1
        self._saved: set[int] = set()
        self._live = roster.live
        self._places = {i.slot: place for place, i in enumerate(roster.by_name.values())}
        self._tails = {i.slot: i.tails for i in roster.by_name.values()}
        self._columns = _Columns()
        self._ready: deque[Edges] = deque()

    def save(self, edge: Edge) -> None:
        """This edge is about to change."""
        if self._at <= edge.id < self._end and edge.id not in self._saved:
            self._saved.add(edge.id)
            self._write(edge)

    def save_path(self, edge: Edge | None) -> None:
        """This edge and those above it are about to change."""
        while edge is not None:
            self.save(edge)
            edge = edge.parent

    def chunks(self) -> Iterator[Chunk]:
        """The pieces, each a slice of work."""
        yield self._head
        get, saved = self._store.get, self._saved
        while self._at < self._end:
            stop = min(self._end, self._at + _LOOKS)
            while self._at < stop and not self._ready:
                edge = get(self._at)
                if edge is not None and edge.id not in saved:
                    self._write(edge)
                self._at += 1
            yield self._ready.popleft() if self._ready else self._seal()
        while self._ready:
            yield self._ready.popleft()
        yield self._seal()

    def _seal(self) -> Edges:
        columns, self._columns = self._columns, _Columns()
        return columns.sealed()

    def _write(self, edge: Edge) -> None:
        columns, live = self._columns, self._live
        if edge.part is None and edge.more is None:
            slots = ones(edge.full & live)
        else:
            slots = sorted(slot for slot in edge.holders() if live >> slot & 1)
        for slot in slots:
            self._row(edge, slot)
        columns.keys.append(edge.keys)
        columns.sizes.append(edge.size)
        parent = edge.parent
        columns.parents.append(parent.keys[-KEY_BYTES:] if parent is not None else _NO_PARENT)
        columns.tenants.append(edge.tenant)
        columns.rows.append(len(slots))
        columns.blocks += edge.size
        if columns.full:
            self._ready.append(self._seal())

    def _row(self, edge: Edge, slot: int) -> None:
        columns = self._columns
        stamp = edge.stamp_of(slot)
        columns.holders.append(self._places[slot])
        columns.stamps.append(stamp)
        tails = self._tails[slot]
        columns.tails.append(sum(1 << t for t in Tier if tails[t].get(stamp) is edge))
        for plane, column in enumerate(columns.planes):
            cover = edge.plane(plane)
            number = 0
            if cover is not None:
                number = ALL if cover.full >> slot & 1 else (cover.part or {}).get(slot, 0)
                if number < ALL:  # a bitset's complement
                    columns.holes[plane].append((~number).to_bytes(-(-edge.size // 8), "little"))
                    number = SOME
            column.append(number)
