"""Plain stickiness: a conversation's hash decides."""

from collections import OrderedDict

import xxhash

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.routing import PoolView, Ranking, Turn
from extproc.terms import InstanceId

_MOST_HOMES = 1_000_000


class SessionLeastLoaded:
    """A conversation stays where its first turn went: to the fewest waiting tokens.

    Bounded: the conversations that were silent longest are forgotten.
    """

    def __init__(self) -> None:
        self._homes: OrderedDict[int, InstanceId] = OrderedDict()

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """Home first, where it is known."""
        known, views = seen(turn, pool)
        home = self._homes.get(known.conversation)
        ranking = cheapest(
            turn,
            views,
            lambda view: (view.instance != home, view.waiting_tokens, view.in_flight),
        )
        self._homes[known.conversation] = ranking.best.instance
        self._homes.move_to_end(known.conversation)
        if len(self._homes) > _MOST_HOMES:
            self._homes.popitem(last=False)
        return ranking


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
