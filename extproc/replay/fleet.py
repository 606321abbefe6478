"""The routers of a replay: one or several replicas, and how their knowledge is off."""

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf

from extproc.engines.conditions import LATE_S
from extproc.index import Held, Source, Tier
from extproc.replay.engine import Engine
from extproc.replay.router import Choice, Placement, Router
from extproc.replay.traffic import Request
from extproc.routing import (
    CERTAIN_S,
    Assigned,
    FlowControl,
    Gaps,
    Load,
    Rates,
    Speed,
    must_wait,
)
from extproc.routing.rates import is_same
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys

SCRAPE_S = 0.2
"""Between two looks at the engines' counters."""


@dataclass(frozen=True, slots=True)
class Blur:
    """What routers do not know, or know late.

    stale_s: until a fact is in a router's index. speed_error: what is believed of each engine's
    prefill times is off by up to this share, up or down. unknown_share: of the requests, those
    whose tokens a router cannot find in any cache, nor remember. replicas: routers that take turns.
    late_s: until one of them knows another's facts and load, which it tells as often.
    learns_speed: prefill times are learnt from what the engines count; nothing is told beforehand
    but the mean of all engines. hints: when an answer ends, it is told when the conversation's next
    turn comes, off by a factor whose logarithm has this standard deviation; None: nobody tells.
    learns_returns: it is learnt from how regularly each conversation's turns came before.
    reads_calls: what follows calls of tools is learnt by itself.
    """

    stale_s: float = 0.0
    speed_error: float = 0.0
    unknown_share: float = 0.0
    replicas: int = 1
    late_s: float = 0.0
    learns_speed: bool = False
    hints: float | None = None
    learns_returns: bool = False
    reads_calls: bool = False


@dataclass(frozen=True, slots=True)
class _News:
    """What one replica tells the others at once."""

    replica: int
    loads: dict[InstanceId, Load]
    assigned: Assigned


class _WrongRates(Rates):
    """Until engines have told, each is believed to take this many times longer, if `is_same` does
    not take that for nothing."""

    def __init__(self, prior: Speed, wrong: Mapping[InstanceId, float]) -> None:
        super().__init__(prior)
        self._wrong = wrong

    def of(self, instance: InstanceId) -> Speed:
        speed = super().of(instance)
        wrong = self._wrong[instance]
        return speed if self.are_learnt or is_same(wrong) else speed.times(wrong)


class Fleet:
    """Replicas of a router, in front of the same engines.

    max_wait_s: for which requests wait at a router at most while every engine is busy.
    """

    def __init__(
        self, routers: Sequence[Router], blur: Blur, max_wait_s: float = 0.0, seed: int = 0
    ) -> None:
        self._routers = routers
        self._lines: list[FlowControl[tuple[Request, bool]]] = [
            FlowControl(max_wait_s, one.outlook.planned) for one in routers if max_wait_s
        ]
        self._blur = blur
        self._chance = random.Random(seed)  # noqa: S311
        self._turn = 0
        self._gaps = Gaps()
        self._of: dict[int, Router] = {}
        self._facts: deque[tuple[float, Router, Held]] = deque()
        self._news: deque[tuple[float, _News]] = deque()
        self._told_at = 0.0
        self._looked_at = 0.0
        self._counted: list[tuple[float, int, int]] = []
        for router in routers:
            router.on_fact = self._spread
            self._mislead(router)

    def place(self, request: Request, now: float, up: Sequence[int]) -> Placement | None:
        """Choose an engine, by the replica whose turn it is; None: it waits until it is `due`."""
        self._catch_up(now)
        number = self._turn % len(self._routers)
        router = self._routers[number]
        self._turn += 1
        if self._blur.learns_returns:
            self._gaps.came(request.conversation, now)
        for each in self._routers:
            each.outlook.returns.came(request.conversation)
        is_known = self._chance.random() >= self._blur.unknown_share
        choice = router.choose(request, now, up, is_known)
        if self._lines and (self._lines[number] or must_wait(choice.ranking)):
            self._lines[number].join((request, is_known), choice.ranking, now)
            return None
        return self._placed(router, choice, now)

    def _placed(self, router: Router, choice: Choice, now: float) -> Placement:
        placement = router.place(choice, now)
        self._of[id(placement)] = router
        return placement

    @property
    def wakes_at(self) -> float:
        """When to ask again for what is `due`, if nothing happens before."""
        return min((line.wakes_at for line in self._lines), default=inf)

    def due(self, now: float, up: Sequence[int]) -> Iterator[Placement]:
        """Requests that have waited and go now."""
        for router, line in zip(self._routers, self._lines, strict=False):
            if line:

                def choose(waiting: tuple[Request, bool], router: Router = router) -> Choice:
                    return router.choose(waiting[0], now, up, waiting[1])

                self._catch_up(now)
                for _, choice in line.due(now, choose):
                    yield self._placed(router, choice, now)

    def prefilled(self, placement: Placement, now: float, is_seen: bool) -> None:
        """Its prefill ended."""
        self._of[id(placement)].prefilled(placement, now, is_seen)

    def ended(self, placement: Placement, now: float) -> None:
        """Its answer ended."""
        self._of.pop(id(placement)).ended(placement, now)
        if self._blur.learns_returns:
            request = placement.request
            calls_tool = self._blur.reads_calls and request.calls_tool
            after_s = self._gaps.ended(request.conversation, now, calls_tool)
            if after_s is not None:
                self._expect(placement, now + after_s, CERTAIN_S)

    def returns(self, placement: Placement, at: float, now: float) -> None:
        """Somebody tells when the conversation's next turn comes; all routers are told."""
        if (noise := self._blur.hints) is None or at <= now:
            return
        told = (at - now) * exp(self._chance.gauss(0.0, noise)) if noise else at - now
        self._expect(placement, now + told, noise * told)

    def _expect(self, placement: Placement, at: float, spread_s: float) -> None:
        for router in self._routers:
            name = router.names[placement.engine]
            router.outlook.returns.expect(placement.request.conversation, name, at, spread_s)

    def lost(self, placement: Placement, is_prefilled: bool) -> None:
        """Its engine went away before it had ended."""
        self._of.pop(id(placement)).lost(placement, is_prefilled)

    def left(self, engine: int) -> None:
        """The engine has gone, and its cache with it: all know at once."""
        for router in self._routers:
            router.left(engine)

    def joined(self, engine: int) -> None:
        """An engine has come, empty."""
        for router in self._routers:
            router.joined(engine)

    def holds(self, engine: int, keys: PackedKeys, now: float) -> None:
        """The engine has computed a prefix that no request was placed for: all know at once."""
        for router in self._routers:
            router.index.apply(Held(router.names[engine], Tier.GPU, NO_BLOCK, keys, Source.ANSWER))

    def look(self, engines: Sequence[Engine], now: float) -> None:
        """See how many wait at the engines, and what they have counted, if it is time."""
        if now - self._looked_at < SCRAPE_S:
            return
        self._looked_at = now
        for number, engine in enumerate(engines):
            usual = engine.computed_tokens / max(engine.prefilled, 1)
            for router in self._routers:
                name, outlook = router.names[number], router.outlook
                late = (engine.waiting - outlook.queued_at(name, now)) * usual
                router.beyond[number] = max(late - LATE_S * outlook.rate(name), 0.0)
        if not self._blur.learns_speed:
            return
        counted = [(one.prefilled_s, one.prefilled, one.computed_tokens) for one in engines]
        for number, (after, before) in enumerate(zip(counted, self._counted, strict=False)):
            seconds, requests, tokens = (a - b for a, b in zip(after, before, strict=True))
            for router in self._routers:
                name = router.names[number]
                router.outlook.rates.observe(name, seconds, requests, tokens, now)
        self._counted = counted

    def _mislead(self, router: Router) -> None:
        """Have it believe in other speeds than it was told."""
        error = self._blur.speed_error
        if error:
            chance = random.Random(1)  # noqa: S311 - the same for all replicas: they look together
            wrong = {name: 1.0 + error * (2.0 * chance.random() - 1.0) for name in router.names}
            router.outlook.rates = _WrongRates(router.outlook.rates.mean, wrong)

    def _spread(self, source: Router, fact: Held, now: float) -> None:
        """A fact reaches its replica's index after `stale_s`, the others' after `late_s` more."""
        blur = self._blur
        if not blur.stale_s:
            source.index.apply(fact)
        for router in self._routers:
            if router is not source:
                self._facts.append((now + blur.stale_s + blur.late_s, router, fact))
            elif blur.stale_s:
                self._facts.append((now + blur.stale_s, router, fact))

    def _catch_up(self, now: float) -> None:
        if self._facts:
            waiting = self._facts
            self._facts = deque()
            for entry in waiting:
                if entry[0] <= now:
                    entry[1].index.apply(entry[2])
                else:
                    self._facts.append(entry)
        if len(self._routers) == 1:
            return
        late_s = self._blur.late_s
        if now - self._told_at >= late_s:
            self._told_at = now
            for number, router in enumerate(self._routers):
                outlook = router.outlook
                loads = outlook.ledger.own(now, outlook.rate)
                self._news.append((now + late_s, _News(number, loads, outlook.assigned)))
        while self._news and self._news[0][0] <= now:
            self._hear(self._news.popleft()[1], now)

    def _hear(self, news: _News, now: float) -> None:
        for number, router in enumerate(self._routers):
            if number != news.replica:
                outlook = router.outlook
                replica = str(news.replica)
                outlook.assigned_by(replica, news.assigned, now)
                outlook.ledger.report(replica, news.loads, now, outlook.rate)
