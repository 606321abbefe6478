"""Bounds that go across instances: a pool's and a tenant's."""

from dataclasses import dataclass

from extproc.index.order import Order

BLOCK_BYTES = 24
"""What a held block costs at most, in edges of 100 blocks and more (docs/index.md)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large an index may grow beyond what its instances' capacities allow; None is no bound.

    A bound counts `BLOCK_BYTES` for every block that an instance holds, though instances that share
    an edge share most of it: it is kept exactly, the same on every replica, and memory stays below.
    Replicas must have equal bounds, or their indexes differ.
    """

    pool_bytes: int | None = None
    tenant_bytes: int | None = None


class Scope:
    """Blocks that count together: at most `limit`, the least recently touched go first.

    reason: what `IndexStats.evicted` calls it. held: (instance, tier, block) triples. order: stamp
    → slot of the instance that was touched then; an entry stays while that instance has one, and
    may stay longer if the instance has gone.
    """

    __slots__ = ("held", "limit", "order", "reason")

    def __init__(self, reason: str, limit: int) -> None:
        self.reason = reason
        self.limit = limit
        self.held = 0
        self.order: Order[int] = Order()


class Scopes:
    """The bounds of one index: its pool's, and one per tenant that has blocks."""

    def __init__(self, bounds: Bounds) -> None:
        self.any = bounds != Bounds()
        """Whether there is any bound; if not, nothing else here needs to be called."""
        limit = bounds.pool_bytes
        self._pool = Scope("pool", limit // BLOCK_BYTES) if limit is not None else None
        self._tenant_bytes = bounds.tenant_bytes
        self._tenants: dict[str, Scope] = {}
        self._kept = 0

    def of(self, tenant: str) -> list[Scope]:
        """The bounds that a tenant's blocks count in, the tenant's own first."""
        scopes = []
        if self._tenant_bytes is not None and tenant:
            scope = self._tenants.get(tenant)
            if scope is None:
                self._forget_empty()
                scope = Scope("tenant", self._tenant_bytes // BLOCK_BYTES)
                self._tenants[tenant] = scope
            scopes.append(scope)
        if self._pool is not None:
            scopes.append(self._pool)
        return scopes

    def shards(self) -> list[dict[int, int]]:
        """The dicts of all orders: who has no more use for them frees them one by one."""
        scopes = [*self._tenants.values(), *([self._pool] if self._pool is not None else [])]
        return [shard for scope in scopes for shard in scope.order.shards()]

    def _forget_empty(self) -> None:
        if len(self._tenants) > 2 * self._kept + 64:
            self._tenants = {name: scope for name, scope in self._tenants.items() if scope.held}
            self._kept = len(self._tenants)
