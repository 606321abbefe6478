"""Bounds that go across instances: a pool's and a tenant's."""

from extproc.index.order import Order


class Scope:
    """Blocks that count together: at most `limit`, the least recently touched go first.

    reason: what `IndexStats.evicted` calls it. held: (instance,
    tier, block) triples. order: stamp → slot of the instance that was touched then; an entry stays
    while that instance has one, and may stay longer if the instance has gone.
    """

    __slots__ = ("held", "limit", "order", "reason")

    def __init__(self, reason: str, limit: int) -> None:
        self.reason = reason
        self.limit = limit
        self.held = 0
        self.order: Order[int] = Order()
