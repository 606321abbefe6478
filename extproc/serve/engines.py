"""Keeps the pools' knowledge of their engines up to date: discovery and metrics, as tasks.

discovery ─▶ who is there ─▶ pool          metrics page ─▶ how they fare ─▶ pool
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from extproc.config import Config, Scraping
from extproc.engines import Instance
from extproc.engines.discovery import Discovery, discovery_of, follow
from extproc.engines.endpoints_file import write_endpoints
from extproc.engines.metrics import Scraper, merge, read_page
from extproc.serve.pool import Pool
from extproc.telemetry import LogOnce, Metrics
from extproc.terms import InstanceId

logger = logging.getLogger("homing.engines")

FIRST_LIST_S = 10.0
"""So long a start waits for what discoveries find; a request that comes without any is a 503."""

_BUSY_LOOKS, _IDLE_LOOKS = 10, 3
"""Missed looks after which a load is unknown: 2 s and 6 s with the default intervals."""


@dataclass(slots=True)
class _Following:
    """A discovery at work for a pool. first: set once it has listed instances."""

    pool: Pool
    settings: object
    first: asyncio.Event
    task: asyncio.Future[None]


class Engines:
    """Discovers and scrapes the engines of all pools.

    emptied: told when the metrics of an instance say that its cache was emptied.
    """

    def __init__(
        self,
        settings: Config,
        metrics: Metrics,
        emptied: Callable[[Pool, InstanceId], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._log = settings.log
        self._file = settings.endpoints_file
        self._changed = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None
        self._once = LogOnce(logger)
        self._metrics = metrics
        self._emptied = emptied
        self._clock = clock
        self._scraper = Scraper(clock)
        self._scraping: asyncio.Future[None] | None = None
        self._following: dict[str, _Following] = {}
        self._pools: tuple[Pool, ...] = ()

    async def start(self) -> None:
        """Scrape from now on; returns once all pools know their instances, or FIRST_LIST_S later.

        After the first `take`.
        """
        self._scraping = asyncio.ensure_future(self._scraper.run())
        if self._file is not None:
            self._writing = asyncio.ensure_future(self._write(self._file))
        firsts = [asyncio.ensure_future(one.first.wait()) for one in self._following.values()]
        if firsts:
            await asyncio.wait(firsts, timeout=FIRST_LIST_S)
        for first in firsts:
            first.cancel()
        for name, one in self._following.items():
            if not one.first.is_set():
                logger.error("pool %s: no instances are known yet", name)

    def take(self, pools: Sequence[Pool]) -> None:
        """These are all pools, configured as they are to run."""
        self._pools = tuple(pools)
        before, self._following = self._following, {}
        for pool in pools:
            known = before.get(pool.name)
            if known and known.pool is pool and known.settings == _discovery_settings(pool):
                self._following[pool.name] = before.pop(pool.name)
            elif (discovery := discovery_of(pool.config, self._log)) is not None:
                self._following[pool.name] = self._follow(pool, discovery)
        for old in before.values():
            old.task.cancel()
        self._watch()

    async def stop(self) -> None:
        """End all tasks."""
        tasks = [one.task for one in self._following.values()]
        tasks += [one for one in (self._scraping, self._writing) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, pool: Pool, discovery: Discovery) -> _Following:
        first = asyncio.Event()
        labels = pool.name, pool.config.discovery.kind if pool.config.discovery else ""
        errors = self._metrics.discovery_errors.labels(*labels)

        def listed(instances: Sequence[Instance]) -> None:
            if changes := _changes(pool.instances, instances):
                logger.info("pool %s: %s", pool.name, ", ".join(changes))
            pool.members.set_instances(instances)
            pool.enrol()
            first.set()
            self._watch()

        task = asyncio.ensure_future(follow(pool.name, discovery, listed, errors.inc))
        return _Following(pool, _discovery_settings(pool), first, task)

    async def _write(self, file: Path) -> None:
        """Write the endpoints of all pools for Envoy, after each change, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            endpoints = [one.endpoint for pool in self._pools for one in pool.instances]
            try:
                await asyncio.to_thread(write_endpoints, file, endpoints)
            except OSError as error:
                self._metrics.errors.labels("endpoints_file").inc()
                self._once.warning(str(error), "endpoints_file: %s", error)

    def _watch(self) -> None:
        """Scrape the pages of all instances there are; one page can be several instances'."""
        pages: dict[str, _Page] = {}
        for pool in self._pools:
            for instance in pool.instances:
                if instance.metrics is not None:
                    page = pages.setdefault(
                        instance.metrics,
                        _Page(instance.metrics, self._metrics, self._emptied, self._clock),
                    )
                    page.add(pool, instance)
        self._scraper.watch(list(pages.values()))
        self._changed.set()


class _Page:
    """The metrics page of one engine: a `Target`, for all that are behind it."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        emptied: Callable[[Pool, InstanceId], None],
        clock: Callable[[], float],
    ) -> None:
        self.url = url
        self._metrics = metrics
        self._emptied = emptied
        self._clock = clock
        self._members: list[tuple[Pool, Instance, Scraping]] = []
        self._in_flight: list[tuple[int, int]] = []

    def add(self, pool: Pool, instance: Instance) -> None:
        """The page is about this instance, too."""
        if isinstance(pool.config.metrics, Scraping):
            self._members.append((pool, instance, pool.config.metrics))

    def interval(self) -> float:
        """The shortest that anybody behind it asks for; none where other replicas look at them."""
        now = self._clock()
        intervals = (
            how.busy_ms if pool.load.in_flight_at(instance.id) else how.idle_ms
            for pool, instance, how in self._members
            if not pool.members.conditions.heard_lately(instance.id, now)
            or pool.log.reads(pool.name, instance.id)
        )
        return min(intervals, default=float("inf")) / 1000

    def asked(self) -> None:
        """What is in flight now is what the page will be about."""
        now = self._clock()
        self._in_flight = [
            (pool.load.in_flight_at(one.id), pool.outlook.queued_at(one.id, now))
            for pool, one, _ in self._members
        ]

    def came(self, body: bytes | None) -> None:
        """Read it, and tell the pools."""
        ranks = read_page(body) if body is not None else {}
        now = self._clock()
        for (pool, instance, how), ours in zip(self._members, self._in_flight, strict=True):
            in_flight, queued = ours
            if instance.rank is not None:
                reading = ranks.get(instance.rank)
            else:
                reading = merge(list(ranks.values())) if ranks else None
            fresh_s = (_BUSY_LOOKS * how.busy_ms if in_flight else _IDLE_LOOKS * how.idle_ms) / 1000
            self._metrics.scrape(pool.name, "read" if reading else "nothing").inc()
            if pool.members.of(instance.id) is None:
                continue  # it left meanwhile
            conditions = pool.members.conditions
            told = conditions.of(instance.id).told, conditions.of(instance.id).cache
            if conditions.scraped(instance.id, reading, in_flight, queued, now, fresh_s):
                self._emptied(pool, instance.id)
            if told != (conditions.of(instance.id).told, conditions.of(instance.id).cache):
                pool.enrol()

    def failed(self, refused: bool) -> None:
        """Nobody is there."""
        for pool, instance, _ in self._members:
            pool.members.conditions.unanswered(instance.id, refused, self._clock())
            self._metrics.scrape(pool.name, "refused" if refused else "silent").inc()


def show_instances(pools: Sequence[Pool], metrics: Metrics, now: float) -> None:
    """Set the gauges that tell how many instances there are and how they fare."""
    metrics.instances.clear()
    metrics.load_unknown.clear()
    for pool in pools:
        metrics.load_unknown.labels(pool.name)
        for instance in pool.instances:
            condition = pool.members.conditions.of(instance.id)
            answers = "yes" if condition.alive else "no"
            metrics.instances.labels(pool.name, instance.state, answers).inc()
            if not condition.fresh(now):
                metrics.load_unknown.labels(pool.name).inc()


def _discovery_settings(pool: Pool) -> object:
    return pool.config.discovery, pool.config.metrics == "off"


def _changes(before: Sequence[Instance], after: Sequence[Instance]) -> list[str]:
    """What became of the instances, for the log."""
    old = {one.id: one for one in before}
    new = {one.id: one for one in after}
    changes = [f"- instance {name}" for name in sorted(old.keys() - new.keys())]
    for name, one in new.items():
        known = old.get(name)
        if known is None or not one.is_cache_of(known):
            changes.append(f"+ instance {name} at {one.endpoint}")
        elif one.state is not known.state:
            changes.append(f"instance {name} is {one.state}")
    return changes
