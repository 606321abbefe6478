"""SGLang's router: `cache_aware`."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn

CACHE_THRESHOLD = 0.3
BALANCE_ABS_THRESHOLD = 64
BALANCE_REL_THRESHOLD = 1.5


class SGLangCacheAware:
    """Shortest queue while the load is uneven, else by a tree of what each worker was sent.

    Source: documentation of `sglang-router` / `smg` (load-balancing, cache-aware), with its
    defaults. Uneven: the longest queue is more than 64 above and more than 1.5 times the shortest.
    Else the worker with the best match if that is above 0.3 of the prompt, else the one whose tree
    is smallest. The original matches characters; here it is given exact tokens, which is better.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By queue, by match or by size of the tree."""
        known, views = seen(turn, pool)
        queues = [view.in_flight for view in views]
        longest, shortest = max(queues), min(queues)
        if longest - shortest > BALANCE_ABS_THRESHOLD and longest > (
            BALANCE_REL_THRESHOLD * shortest
        ):
            return cheapest(turn, views, lambda view: view.in_flight)
        best = max(view.cached_tokens for view in views)
        if best > CACHE_THRESHOLD * (known.tokens or 0):
            return cheapest(turn, views, lambda view: -view.cached_tokens)
        return cheapest(turn, views, lambda view: view.held_tokens)
