"""What the index keeps of one instance."""

import xxhash

from extproc.index.edge import Edge
from extproc.index.facts import Tier
from extproc.index.order import Order
from extproc.index.scope import Scope
from extproc.index.sums import TIERS, Sums
from extproc.terms import InstanceId


class Instance:
    """One instance's place in the masks, its counts and its order of use.

    slot, bit: its bit in the edges' masks. limits, counts, tails: by tier. sums: of its block keys,
    by plane. scopes: its blocks in each bound.

    tails: one entry per touch that still counts: its stamp and the deepest edge that it touched and
    that the instance holds something of in the tier. Every edge the instance holds something of has
    an entry with its own stamp at or below it, so taking the oldest entry's deepest blocks again
    and again takes what was used longest ago, leaves first.
    """

    __slots__ = (
        "bit",
        "block_size",
        "counts",
        "endpoint",
        "limits",
        "name",
        "scopes",
        "slot",
        "sums",
        "tails",
    )

    def __init__(self, name: InstanceId, slot: int, block_size: int, endpoint: str) -> None:
        self.name = name
        self.slot = slot
        self.bit = 1 << slot
        self.block_size = block_size
        self.endpoint = endpoint
        self.limits: list[int | None] = [None] * TIERS
        self.counts = [0] * TIERS
        self.sums = Sums()
        self.scopes: dict[Scope, int] = {}
        self.tails: list[Order[Edge]] = [Order() for _ in range(TIERS)]

    def digest(self) -> int:
        """64 bits over what decides how it answers and what it does next; ~2 µs, any size.

        Name, block size, endpoint and limits; the sum of its block keys in each plane; and per tier
        the stamps that still count, which are its order of use.
        """
        head = f"{self.block_size} {self.limits} {self.name} {self.endpoint} ".encode()
        numbers = *self.sums.totals(), *(tails.squares for tails in self.tails)
        return xxhash.xxh3_64_intdigest(head + b"".join(n.to_bytes(24, "little") for n in numbers))

    def tier_of(self, stamp: int) -> Tier | None:
        """The first tier whose order has an entry with this stamp."""
        return next((tier for tier in Tier if stamp in self.tails[tier]), None)
