"""LMetric: a product of two counts."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn


class LMetric:
    """New prefill tokens times the batch: no parameter.

    Source: Zhang et al., LMetric (arXiv 2603.15202): prefill tokens that the instance would have,
    those that wait there included, times the requests that it would have.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By the product."""
        tokens = turn.tokens or 0
        return cheapest(
            turn,
            seen(turn, pool)[1],
            lambda view: (view.waiting_tokens + tokens - view.cached_tokens) * (view.in_flight + 1),
        )
