"""GORGO: uncached tokens, and a weight for those that are queued."""

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn

LOAD_WEIGHT = 0.5


class Gorgo:
    """Uncached tokens of the prompt, and half of the prompt tokens that are queued.

    Source: GORGO (`gorgo-lb` 0.2.0, `gorgo.policy`): a weighted sum of the network's round trip,
    the uncached tokens and the tokens of prompts that were sent there and have no first token yet.
    Here all instances are as near; the weight of the queue is 0.5, with which it does better here
    than with its default of 1.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By weighted tokens."""
        tokens = turn.tokens or 0
        return cheapest(
            turn,
            seen(turn, pool)[1],
            lambda view: tokens - view.cached_tokens + LOAD_WEIGHT * view.queued_tokens,
        )
