"""What discovery says of an instance, whichever discovery it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from extproc.config import EventPorts
from extproc.stream.headers import ENGINE_RANK
from extproc.terms import Endpoint, InstanceId


class State(StrEnum):
    """How far an instance is in its life; one that is gone is not listed."""

    STARTING = "starting"
    """It is there and takes no requests yet."""
    READY = "ready"
    DRAINING = "draining"
    """It ends soon: what is in flight there goes on, and nothing new is sent."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One KV cache: an engine replica, or one data-parallel rank of it.

    id: unique in its pool. rank: where ranks share an endpoint, which of them; a request header
    chooses it. capacity_blocks: blocks that its cache holds, where somebody says so and its metrics
    do not. metrics: URL of its metrics in Prometheus text; None for none. events: ports of its
    KV-cache events; None for the pool's.
    """

    id: InstanceId
    endpoint: Endpoint
    state: State = State.READY
    rank: int | None = None
    capacity_blocks: int | None = None
    metrics: str | None = None
    events: EventPorts | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers that lead to it, besides its endpoint."""
        return {} if self.rank is None else {ENGINE_RANK: str(self.rank)}

    def is_cache_of(self, other: "Instance") -> bool:
        """Whether both are one KV cache: the same name at the same place."""
        return (self.id, self.endpoint, self.rank) == (other.id, other.endpoint, other.rank)
