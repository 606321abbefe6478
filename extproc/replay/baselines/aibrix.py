"""AIBrix's gateway: `prefix-cache`."""

from statistics import fmean, pstdev

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn

IMBALANCE = 16
FACTOR = 2


class AIBrixPrefixCache:
    """The best match among pods that are not much busier than the mean.

    Source: vllm-project/aibrix, `pkg/plugins/gateway/algorithms/README.md`, with its defaults: if
    the busiest pod runs more than 16 requests more than the least busy one, the least busy; else
    the matching pods by falling match and rising requests, the first with at most mean + 2 standard
    deviations; else the least busy. The original matches blocks of 128 characters; here it is given
    exact tokens.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By match within the limit, or by requests."""
        views = seen(turn, pool)[1]
        running = [view.in_flight for view in views]
        if max(running) - min(running) > IMBALANCE:
            return cheapest(turn, views, lambda view: view.in_flight)
        most = fmean(running) + FACTOR * pstdev(running)
        return cheapest(
            turn,
            views,
            lambda view: (
                -view.cached_tokens if view.in_flight <= most else 0,
                view.in_flight,
            ),
        )
