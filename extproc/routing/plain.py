"""Policies without a price: what every load balancer has, to compare with, or to fall back on."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from extproc.routing.views import InstanceView, PoolView, Ranking, Score, Turn

View = TypeVar("View", bound=InstanceView)
Cost: TypeAlias = Callable[[View], float | tuple[float, ...]]


def ranked(turn: Turn, views: Sequence[View], cost: Cost[View]) -> Ranking:
    """All views by rising cost; equal ones rotate with the turn. O(n log n)."""
    count = len(views)
    order = sorted(
        enumerate(views), key=lambda entry: (cost(entry[1]), (entry[0] - turn.tiebreak) % count)
    )
    return Ranking(tuple(_unpriced(turn, view) for _, view in order))


class RoundRobin:
    """One after the other (nginx, Envoy `ROUND_ROBIN`)."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """Whose turn it is."""
        return ranked(turn, pool.instances, lambda _: 0.0)


class LeastTokens:
    """Fewest uncached tokens waiting, whatever is cached; then fewest requests in flight."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By waiting tokens."""
        return ranked(turn, pool.instances, lambda view: (view.waiting_tokens, view.in_flight))


def _unpriced(turn: Turn, view: InstanceView) -> Score:
    uncached = max((turn.tokens or 0) - view.cached_tokens, 0)
    return Score(
        view.instance,
        view.endpoint,
        view.cached_tokens,
        wait_s=view.waiting_tokens / view.prefill_rate,
        prefill_s=uncached / view.prefill_rate + view.overhead_s,
        price_s=0.0,
        wait_weight=turn.wait_weight,
    )
