"""How the instances of a pool fare, as far as their answers and their metrics tell. No I/O.

An instance is alive until three scrapes in a row or one routed request found nobody there, and
again at the first answer of any kind; one that is not scraped is tried again after a while. What it
said of its load holds for a while and is then
unknown, which is not the same as idle.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from extproc.engines.instances import Instance, State
from extproc.engines.metrics import Reading
from extproc.routing import Load
from extproc.terms import Endpoint, InstanceId

logger = logging.getLogger("homing.engines")

MOST_FAILURES = 3
"""Scrapes in a row that find nobody before an instance counts as gone."""

HEARD_S = 3.0
"""So long what another replica said of an instance holds; it says it again every second."""

RETRY_S = 10.0
"""So long after a request that could not connect an instance without metrics is tried again."""


LATE_S = 0.5
"""Seconds of prefill by which more may wait at an engine than is predicted to, before that counts:
what waits there is of its usual size only on average."""

NO_LOAD = Load(0.0, 0)

NEVER_S = -1.0
"""How long nothing is good for."""


class Cache(NamedTuple):
    """An engine's KV cache: tokens a block, and blocks."""

    block_size: int
    blocks: int


@dataclass(slots=True)
class Condition:
    """One instance's.

    failures: scrapes in a row that found nobody, the last at `failed_at`. lost: nobody was there
    since the last answer.
    reading: the last one, told at `read_at` (monotonic seconds) and good for `fresh_s`.
    foreign: what it told of beyond the requests of ours. cache: as it told last. heard_at: when
    another replica last said how it fares.
    """

    instance: Instance
    failures: int = 0
    failed_at: float = float("-inf")
    lost: bool = False
    reading: Reading | None = None
    read_at: float = float("-inf")
    fresh_s: float = NEVER_S
    foreign: Load = NO_LOAD
    cache: Cache | None = None
    heard_at: float = float("-inf")

    @property
    def alive(self) -> bool:
        """Whether somebody is there, as far as is known."""
        return self.failures < MOST_FAILURES

    @property
    def asleep(self) -> bool:
        """Whether it has given its cache back and serves nobody."""
        return self.reading is not None and self.reading.asleep

    @property
    def usable(self) -> bool:
        """Whether requests should go there."""
        return self.instance.state is State.READY and self.alive and not self.asleep

    @property
    def told(self) -> bool:
        """Whether its metrics have ever been asked for and answered, whatever they said."""
        return self.read_at > float("-inf")

    def fresh(self, now: float) -> bool:
        """Whether what it said of its load still holds."""
        return now - self.read_at <= self.fresh_s


class Conditions:
    """Those of all instances that are listed. now: monotonic seconds, everywhere.

    prefilled: told what an engine has prefilled since it was looked at before: seconds, requests,
    uncached tokens, and now. restarted: told that another process counts now. rate: tokens a second
    that an instance prefills.
    """

    def __init__(self) -> None:
        self.rate: Callable[[InstanceId], float] = _unknown_rate
        self.prefilled: Callable[[InstanceId, float, float, float, float], None] = _nobody_learns
        self.restarted: Callable[[InstanceId], None] = _nobody_learns
        self.changes = 0
        """Counts what own looks brought, to see whether there is something new to tell others."""
        self._of: dict[InstanceId, Condition] = {}
        self._unusable: set[InstanceId] = set()

    def keep(self, instances: Iterable[Instance]) -> None:
        """These are all there are. What is known of those that stay is kept."""
        before, self._of = self._of, {}
        for instance in instances:
            known = before.get(instance.id)
            if known is None or not known.instance.is_cache_of(instance):
                known = Condition(instance)
            known.instance = instance
            self._of[instance.id] = known
        self._unusable = {name for name, one in self._of.items() if not one.usable}

    def of(self, instance: InstanceId) -> Condition:
        """A listed instance's. Raises KeyError for another."""
        return self._of[instance]

    # What was seen

    def scraped(
        self,
        instance: InstanceId,
        reading: Reading | None,
        in_flight: int,
        queued: int,
        now: float,
        fresh_s: float,
    ) -> bool:
        """Its metrics page came. Returns whether its cache has been emptied since the last one.

        reading: None where the page says nothing of the engine: it is alive, its load unknown.
        in_flight: requests of ours there when the page was asked for. queued: those of them whose
        prefill was not predicted to have ended.
        """
        condition = self._of.get(instance)
        if condition is None:
            return False
        before, was_lost = condition.reading, condition.lost
        self.changes += 1
        self._take(condition, reading, in_flight, queued, now, fresh_s)
        if reading is None:
            return was_lost
        if before is None:
            return was_lost or reading.asleep
        return reading.restarted_since(before) or (reading.asleep and not before.asleep)

    def unanswered(self, instance: InstanceId, refused: bool, now: float) -> None:
        """A scrape found nobody. refused: the connection was refused or reset, so nobody ran."""
        condition = self._of.get(instance)
        if condition is not None:
            self.changes += 1
            condition.lost = condition.lost or refused
            self._failed(condition, condition.failures + 1, now)

    def heard(
        self,
        instance: InstanceId,
        answers: bool,
        reading: Reading | None,
        in_flight: int,
        queued: int,
        now: float,
    ) -> None:
        """Another replica, which looks at it for all, has said how it fares."""
        condition = self._of.get(instance)
        if condition is None:
            return
        condition.heard_at = now
        if answers:
            self._take(condition, reading, in_flight, queued, now, HEARD_S)
        else:
            self._failed(condition, MOST_FAILURES, now)

    def heard_lately(self, instance: InstanceId, now: float) -> bool:
        """Whether another replica looks at it, so that this one need not."""
        condition = self._of.get(instance)
        return condition is not None and now - condition.heard_at < HEARD_S

    def all(self) -> Iterable[Condition]:
        """Those of all listed instances."""
        return self._of.values()

    def unreachable(self, endpoint: Endpoint, now: float) -> None:
        """A routed request could not connect."""
        for condition in self._at(endpoint):
            self._failed(condition, MOST_FAILURES, now)

    def answered(self, endpoint: Endpoint) -> None:
        """An engine answered a routed request, whatever it said."""
        for condition in self._at(endpoint):
            self._answered(condition)

    # What follows

    def usable(self, instances: Sequence[Instance], now: float) -> Sequence[Instance]:
        """Those that should be given requests, or else those that are the next best.

        Where none is ready, all that answer; where none does, all of them.
        """
        if not self._unusable:
            return instances
        self._forgive(now)
        of = self._of
        return (
            [one for one in instances if one.id not in self._unusable]
            or [one for one in instances if of[one.id].alive and not of[one.id].asleep]
            or instances
        )

    def loads(
        self, instances: Sequence[Instance], ours: Sequence[Load], now: float
    ) -> Sequence[Load]:
        """The load of each: ours, and what its engine has beyond it.

        Where an engine's is not known, it has at least the median of the others'. O(instances).
        """
        loads, unknown = [], []
        for position, (one, own) in enumerate(zip(instances, ours, strict=True)):
            condition = self._of[one.id]
            if now - condition.read_at > condition.fresh_s:
                unknown.append(position)
            elif condition.foreign is not NO_LOAD:
                more = condition.foreign
                own = Load(own.waiting + more.waiting, own.in_flight + more.in_flight)
            loads.append(own)
        if not unknown or len(unknown) == len(loads):
            return loads
        strangers = set(unknown)
        told = [load for position, load in enumerate(loads) if position not in strangers]
        waiting = median(load.waiting for load in told)
        in_flight = int(median(load.in_flight for load in told))
        for position in unknown:
            own = loads[position]
            loads[position] = Load(max(own.waiting, waiting), max(own.in_flight, in_flight))
        return loads

    def _forgive(self, now: float) -> None:
        """Nobody but a request can find out whether one that is not scraped is back."""
        for name in tuple(self._unusable):
            condition = self._of[name]
            if condition.instance.metrics is None and now - condition.failed_at >= RETRY_S:
                condition.failures = 0
                self._note(condition)

    def _take(
        self,
        condition: Condition,
        reading: Reading | None,
        in_flight: int,
        queued: int,
        now: float,
        fresh_s: float,
    ) -> None:
        self._answered(condition)
        condition.lost = False
        before = condition.reading
        if before is not None and reading is not None:
            prefilled = reading.prefilled_since(before)
            if reading.restarted_since(before):
                self.restarted(condition.instance.id)
            elif prefilled is not None and prefilled[1]:
                self.prefilled(condition.instance.id, *prefilled, now)
        condition.reading, condition.read_at = reading, now
        condition.fresh_s = fresh_s if reading is not None else NEVER_S
        self._note(condition)
        if reading is None:
            return
        slack = LATE_S * self.rate(condition.instance.id)
        condition.foreign = _foreign(reading, in_flight, queued, slack)
        if reading.block_size and reading.blocks:
            condition.cache = Cache(reading.block_size, reading.blocks)

    def _at(self, endpoint: Endpoint) -> Iterable[Condition]:
        return (one for one in self._of.values() if one.instance.endpoint == endpoint)

    def _answered(self, condition: Condition) -> None:
        if not condition.alive:
            logger.info("instance %s answers again", condition.instance.id)
        condition.failures = 0
        self._note(condition)

    def _failed(self, condition: Condition, failures: int, now: float) -> None:
        was_alive, condition.failures = condition.alive, failures
        condition.failed_at = now
        if was_alive and not condition.alive:
            logger.warning("instance %s does not answer", condition.instance.id)
        self._note(condition)

    def _note(self, condition: Condition) -> None:
        if condition.usable:
            self._unusable.discard(condition.instance.id)
        else:
            self._unusable.add(condition.instance.id)


def _unknown_rate(_: InstanceId) -> float:
    return 0.0


def _nobody_learns(_: InstanceId, *__: float) -> None:
    pass


def _foreign(reading: Reading, in_flight: int, queued: int, slack: float) -> Load:
    """What an engine has beyond what is known of our requests; each is of its usual size.

    If more of ours wait there than are predicted to, by more than the slack (tokens), the engine is
    slower than believed, and without this it would look idle while its queue grows.
    """
    requests = max(reading.running + reading.waiting - in_flight, 0.0)
    foreign = min(reading.waiting, requests)
    usual = reading.computed_per_request
    late = max((reading.waiting - queued - foreign) * usual - slack, 0.0)
    if requests < 1 and not late:
        return NO_LOAD
    return Load(foreign * usual + late, int(requests))
