"""An edge of the tree: a run of blocks, who holds it, and when each of them last touched it.

Edges are structs outside Python's garbage collector that know their parent and not their children,
so there are no cycles, and nobody has to look at them.
"""

from msgspec import Struct

from extproc.index.cover import Cover
from extproc.terms import KEY_BYTES

HELD_GPU, HELD_CPU, SURE_GPU, SURE_CPU = range(4)
"""Planes: who holds a block in which tier, and for whom that is confirmed."""

_ALONE: dict[int, Cover] = {}


def alone(bit: int) -> Cover:
    """The cover of one full holder, the usual one: one object for all edges, so never changed."""
    cover = _ALONE.get(bit)
    if cover is None:
        cover = _ALONE[bit] = Cover(bit)
    return cover


class Tenancy(Struct, gc=False, eq=False):
    """Whose bound counts a chain with all its branches; shared by their edges.

    held: slot → blocks that it holds there, in all tiers, where bounds are counted. A chain that
    nobody holds any more is nobody's: a fact that comes before its edges are swept away must find
    what it would find after.
    """

    tenant: str
    held: dict[int, int]


class More(Struct, gc=False, eq=False):
    """What most edges, leaves with one holder, have no need of.

    kids: edges below. stamps: stamp by slot, where there is more than one holder. slow: the planes
    of the slower tier that anybody is in. tenancy: whose bound counts it, where there are bounds.
    """

    kids: int = 0
    stamps: dict[int, int] | None = None
    slow: dict[int, Cover] | None = None
    tenancy: Tenancy | None = None


class Edge(Cover, gc=False, eq=False):
    """A run of blocks without a branch; as a `Cover` it is its own plane HELD_GPU.

    keys: packed, root first. id: what the table of all blocks calls it, from 1. sure: plane
    SURE_GPU; it may be shared (`alone`), so it is changed through `own_plane`.
    stamp: position in the log of the last fact that touched it, for its sole holder; with more,
    `More.stamps` has them. One for the whole edge is enough, because a touch that ends inside what
    a slot holds splits the edge.

    There are as many as turns of conversations: 80 bytes, and each field more counts 8.
    """

    keys: bytes = b""
    parent: "Edge | None" = None
    id: int = 0
    stamp: int = 0
    sure: Cover | None = None
    more: More | None = None

    @property
    def size(self) -> int:
        """Blocks."""
        return len(self.keys) // KEY_BYTES

    @property
    def kids(self) -> int:
        """Edges below."""
        return self.more.kids if self.more is not None else 0

    @property
    def stamps(self) -> dict[int, int] | None:
        """Stamp by slot; None where there is one holder at most."""
        return self.more.stamps if self.more is not None else None

    @property
    def slow(self) -> dict[int, Cover] | None:
        """The planes of the slower tier, None where nobody is in them."""
        return self.more.slow if self.more is not None else None

    @property
    def tenant(self) -> str:
        """Whose bound counts it."""
        tenancy = self.tenancy
        return tenancy.tenant if tenancy is not None else ""

    @property
    def tenancy(self) -> Tenancy | None:
        """Whose bound counts its chain, and who holds how much of that."""
        return self.more.tenancy if self.more is not None else None

    def own_more(self) -> More:
        """What few edges have, made if it is not there."""
        more = self.more
        if more is None:
            more = self.more = More()
        return more

    def plane(self, plane: int) -> Cover | None:
        """The cover of a plane, to be read; None where nobody is in it."""
        if plane == HELD_GPU:
            return self
        if plane == SURE_GPU:
            return self.sure
        slow = self.slow
        return slow.get(plane) if slow is not None else None

    def own_plane(self, plane: int) -> Cover:
        """The cover of a plane, to be changed; made if it is not there."""
        if plane == HELD_GPU:
            return self
        if plane == SURE_GPU:
            cover = self.sure
            if cover is None:
                cover = self.sure = Cover()
            elif _ALONE.get(cover.full) is cover:
                cover = self.sure = Cover(cover.full)
            return cover
        more = self.own_more()
        if more.slow is None:
            more.slow = {}
        return more.slow.setdefault(plane, Cover())

    def blocks(self, plane: int, slot: int) -> int:
        """What `slot` has in a plane, as a bitset."""
        cover = self.plane(plane)
        return cover.get(slot, self.size) if cover is not None else 0

    def has(self, slot: int) -> bool:
        """Whether `slot` holds anything here, in any tier."""
        if self.full >> slot & 1 or (self.part is not None and slot in self.part):
            return True
        if self.more is None:
            return False
        cpu = self.plane(HELD_CPU)
        return cpu is not None and cpu.holds(slot)

    def holders(self) -> set[int]:
        """All slots that hold anything here, in any tier."""
        cpu = self.plane(HELD_CPU)
        return {*self.slots(), *(cpu.slots() if cpu is not None else ())}

    def held_at(self, block: int, live: int) -> bool:
        """Whether any slot of `live` holds this block, in any tier."""
        cpu = self.plane(HELD_CPU)
        return self.at(block, self.size, live) or (
            cpu is not None and cpu.at(block, self.size, live)
        )

    def stamp_of(self, slot: int) -> int:
        """When `slot`, which holds something here, last touched it."""
        stamps = self.stamps
        return stamps.get(slot, 0) if stamps is not None else self.stamp

    def set_stamp(self, slot: int, stamp: int) -> None:
        """`slot` touched what it holds here."""
        stamps = self.stamps
        if stamps is not None:
            stamps[slot] = stamp
        else:
            self.stamp = stamp

    def set_stamps(self, stamps: dict[int, int]) -> None:
        """These are all holders, and when they touched it last."""
        if len(stamps) > 1:
            self.own_more().stamps = stamps
            return
        if self.more is not None:
            self.more.stamps = None
        for stamp in stamps.values():
            self.stamp = stamp

    def welcome(self, slot: int) -> None:
        """`slot`, which holds nothing here yet, is about to."""
        if self.stamps is None:
            others = self.holders()
            if others:
                self.own_more().stamps = dict.fromkeys(others, self.stamp)

    def forget(self, slot: int) -> None:
        """`slot` holds nothing here any more."""
        stamps = self.stamps
        if stamps is not None:
            stamps.pop(slot, None)
            if len(stamps) == 1:
                self.set_stamps(stamps)
                self.tidy()

    def tidy(self) -> None:
        """Forget planes that nobody is in any more, and what is of no more use."""
        if self.sure is not None and self.sure.empty:
            self.sure = None
        more = self.more
        if more is not None:
            if more.slow is not None:
                more.slow = {p: c for p, c in more.slow.items() if not c.empty} or None
            if not (more.kids or more.stamps or more.slow or more.tenancy):
                self.more = None

    def sole(self, bit: int) -> tuple[int, ...]:
        """The planes that a slot has all of, if nobody else has anything and nothing is below."""
        more = self.more
        if (
            self.full == bit
            and self.part is None
            and (more is None or not (more.kids or more.slow))
        ):
            if self.sure is None:
                return (HELD_GPU,)
            if self.sure is _ALONE.get(bit):
                return (HELD_GPU, SURE_GPU)
        return ()

    def own_covers(self) -> list[Cover]:
        """The covers of all planes, to be changed."""
        return [self.own_plane(plane) for plane in range(4) if self.plane(plane) is not None]
