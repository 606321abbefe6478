"""Preble's E2: exploit what is cached where that is most of the prompt, else explore."""

from collections import deque

from extproc.replay.baselines.choosing import cheapest, seen
from extproc.replay.router import LabView
from extproc.routing import PoolView, Ranking, Turn
from extproc.terms import InstanceId

WINDOW_S = 180.0
IMBALANCE = 2.0


class PrebleE2:
    """Holders by load where more is cached than not; else the least load, prefill and eviction.

    Source: Srivatsa et al., Preble (ICLR'25), algorithm 1, with its window of three minutes. Load:
    prefill seconds assigned in the window. Eviction: the prefill of what has to go, at the share of
    prompt tokens that were hits in the window. A holder whose load is more than twice the least one
    gives its requests to that one (`Th_bal`). Decode load is left out: the lab's decode does not
    slow prefills.
    """

    def __init__(self) -> None:
        self._assigned: deque[tuple[float, InstanceId, float, int, int]] = deque()
        self._load: dict[InstanceId, float] = {}
        self._tokens = 0
        self._hits = 0

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By exploitation or exploration."""
        known, views = seen(turn, pool)
        self._forget(known.at)
        tokens = known.tokens or 0
        load = self._load

        def of(view: LabView) -> float:
            return view.waiting_tokens / view.prefill_rate

        def lately(view: LabView) -> float:
            return load.get(view.instance, 0.0)

        most = max(view.cached_tokens for view in views)
        holder = min(
            (view for view in views if view.cached_tokens == most),
            key=lambda view: (of(view), lately(view)),
        )
        is_heavy = lately(holder) > IMBALANCE * max(min(map(lately, views)), 1.0)
        if most > tokens - most:
            home = min(views, key=lately) if is_heavy else holder
            ranking = cheapest(turn, views, lambda view: (view is not home, of(view)))
        else:
            hit_share = self._hits / self._tokens if self._tokens else 0.0

            def cost(view: LabView) -> float:
                uncached = tokens - view.cached_tokens
                evicted = max(view.held_tokens + uncached - view.capacity_tokens, 0)
                return of(view) + (uncached + evicted * hit_share) / view.prefill_rate

            ranking = cheapest(turn, views, cost)
        self._note(known.at, ranking, tokens, pool.prefill_rate)
        return ranking

    def _note(self, now: float, ranking: Ranking, tokens: int, rate: float) -> None:
        best = ranking.best
        seconds = (tokens - best.cached_tokens) / rate
        self._assigned.append((now, best.instance, seconds, tokens, best.cached_tokens))
        self._load[best.instance] = self._load.get(best.instance, 0.0) + seconds
        self._tokens += tokens
        self._hits += best.cached_tokens

    def _forget(self, now: float) -> None:
        while self._assigned and self._assigned[0][0] < now - WINDOW_S:
            _, instance, seconds, tokens, hits = self._assigned.popleft()
            self._load[instance] -= seconds
            self._tokens -= tokens
            self._hits -= hits
