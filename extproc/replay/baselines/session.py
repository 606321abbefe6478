"""Plain stickiness: a conversation's hash decides."""

import xxhash

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn


class SessionHash:
    """Rendezvous hash of the conversation over the instances (Envoy `RING_HASH` is as even)."""

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By hash of conversation and instance."""
        known, views = seen(turn, pool)
        return cheapest(
            turn,
            views,
            lambda view: xxhash.xxh3_64_intdigest(view.instance.encode(), seed=known.conversation),
        )
