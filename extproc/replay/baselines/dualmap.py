"""DualMap: two candidates by hash, and the better of them."""

from collections.abc import Sequence

import xxhash

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.replay.router import LabView
from extproc.routing import PoolView, Ranking, Turn

SLO_S = 5.0


def _hashed(views: Sequence[LabView], key: bytes, seed: int) -> LabView:
    """Rendezvous hash: as even as a ring, and as steady when instances come and go."""
    return min(
        views, key=lambda view: xxhash.xxh3_64_intdigest(key + view.instance.encode(), seed=seed)
    )


class DualMap:
    """Of two hashed instances the one that holds more, unless its TTFT would break the SLO.

    Source: DualMap (arXiv 2602.06502), without migration: two independent hashes of the prompt's
    prefix map to two instances; cache affinity decides between them while the predicted TTFT is
    within the SLO (5 s), the predicted TTFT otherwise. What is hashed here is the conversation.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """The two candidates first."""
        known, views = seen(turn, pool)
        tokens = known.tokens or 0
        key = known.conversation.to_bytes(8, "little", signed=True)
        first, second = (_hashed(views, key, seed) for seed in (1, 2))

        def ttft(view: LabView) -> float:
            return (view.waiting_tokens + tokens - view.cached_tokens) / view.prefill_rate

        pair = sorted((first, second), key=lambda view: (-view.cached_tokens, ttft(view)))
        if ttft(pair[0]) > SLO_S:
            pair.sort(key=ttft)
        order = {view.instance: place for place, view in reversed(list(enumerate(pair)))}
        return cheapest(turn, views, lambda view: (order.get(view.instance, 2), ttft(view)))
