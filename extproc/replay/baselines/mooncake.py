"""Mooncake's conductor, for one stage of prefill."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn


class MinTTFT:
    """The least predicted TTFT: the queue's time and the prefill's.

    Source: Qin et al., Mooncake (FAST'25), algorithm 1, without its transfers between instances. It
    predicts times, so it knows what the lab's router has learnt of them.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By predicted TTFT."""
        tokens = turn.tokens or 0
        return cheapest(
            turn,
            seen(turn, pool)[1],
            lambda view: (view.waiting_tokens + tokens - view.cached_tokens) / view.prefill_rate,
        )
