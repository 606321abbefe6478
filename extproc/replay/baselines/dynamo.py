"""NVIDIA Dynamo's KV router."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn

OVERLAP_WEIGHT = 1.0


class Dynamo:
    """Prefill tokens times a weight, and active tokens; the least wins (temperature 0).

    Source: Dynamo documentation, "KV Router", cost function with `kv-overlap-score-weight` 1: the
    prefill that the worker would have, what waits there included, and the blocks that would be
    active there, this request's included. Counted in tokens here instead of blocks.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By cost."""
        tokens = turn.tokens or 0
        return cheapest(
            turn,
            seen(turn, pool)[1],
            lambda view: (
                OVERLAP_WEIGHT * (view.waiting_tokens + tokens - view.cached_tokens)
                + view.active_tokens
                + tokens
            ),
        )
