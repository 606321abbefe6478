"""llm-d's router: the default scorers, and affinity that holds until saturation."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.replay.router import LabView
from extproc.routing import PoolView, Ranking, Turn

PREFIX, QUEUE, CACHE_USE = 3, 2, 2
"""Weights of the scorers."""

AFFINITY = 0.80
"""Share of the prompt from which on an endpoint that has it is kept to."""

MOST_PENALTY_S = 5.0
"""So much more TTFT than elsewhere is taken for it."""

EXPLORE_EVERY = 100
"""One request in so many looks at all endpoints."""


class LLMDDefault:
    """Weighted scores: prefix 3, queue 2, use of the KV cache 2; the highest wins.

    Source: llm-d inference scheduler 2025 (Gateway API Inference Extension), default profile:
    `prefix-cache-scorer`: share of the prompt that is cached; `queue-scorer`: waiting requests,
    scaled between the least and the most; `kv-cache-utilization-scorer`: what running requests
    leave free.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By weighted score."""
        views = seen(turn, pool)[1]
        queues = [view.queued for view in views]
        least, most = min(queues), max(queues)
        tokens = max(turn.tokens or 1, 1)

        def cost(view: LabView) -> float:
            queue = (most - view.queued) / (most - least) if most > least else 1.0
            prefix = view.cached_tokens / tokens
            return -(PREFIX * prefix + QUEUE * queue + CACHE_USE * (1 - view.cache_use))

        return cheapest(turn, views, cost)


class LLMDSticky:
    """Who holds most of the prompt, unless it takes seconds longer there; the least TTFT of these.

    Source: llm-d router 2026, latency scorer with its affinity gate and defaults: endpoints with at
    least 0.80 of the prompt are kept to, but for one request in a hundred, and unless the best of
    them has a predicted TTFT of more than 5 s above the best of all. It predicts times, so it knows
    what the lab's router has learnt of them; there are no SLOs, so there is one tier.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By predicted TTFT, those behind the gate first."""
        views = seen(turn, pool)[1]
        tokens = max(turn.tokens or 1, 1)

        def ttft(view: LabView) -> float:
            return (view.waiting_tokens + tokens - view.cached_tokens) / view.prefill_rate

        sticky = {view.instance for view in views if view.cached_tokens >= AFFINITY * tokens}
        best = min((ttft(view) for view in views if view.instance in sticky), default=0.0)
        if best > min(map(ttft, views)) + MOST_PENALTY_S or turn.tiebreak % EXPLORE_EVERY == 0:
            sticky = set()
        return cheapest(turn, views, lambda view: (view.instance not in sticky, ttft(view)))
