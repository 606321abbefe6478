"""Policies that count one thing: what every load balancer has, and plain locality."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn


class LeastRequests:
    """Fewest requests in flight, of all instances (Envoy `LEAST_REQUEST` with a full scan)."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By requests in flight."""
        return cheapest(turn, seen(turn, pool)[1], lambda view: view.in_flight)


class LongestPrefix:
    """Whoever holds most of the prompt, whatever waits there; then fewest waiting tokens."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By cached tokens."""
        views = seen(turn, pool)[1]
        return cheapest(turn, views, lambda view: (-view.cached_tokens, view.waiting_tokens))
