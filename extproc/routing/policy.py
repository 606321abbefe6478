"""What a routing policy is, and the table of those that can be configured."""

from collections.abc import Mapping
from typing import Protocol

from extproc.routing.plain import LeastTokens, RoundRobin
from extproc.routing.priced import PricedTTFT
from extproc.routing.views import PoolView, Ranking, Turn


class Policy(Protocol):
    """Ranks the instances of a pool for one turn. Pure: all it needs is in its arguments."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """Best first, every eligible instance once. `pool.instances` is not empty."""
        ...


POLICIES: Mapping[str, type[Policy]] = {
    "priced": PricedTTFT,
    "least-tokens": LeastTokens,
    "round-robin": RoundRobin,
}
"""By the names that a configuration has for them."""
