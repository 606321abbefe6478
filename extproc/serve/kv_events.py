"""The pools' KV-cache events: who is followed, and what follows for the index and its bounds."""

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Final

from extproc.config import Events
from extproc.engines import Instance
from extproc.engines.events import Address, EventReader, Fold, Root, Stream, Subscription
from extproc.index import Cleared, Dropped, Fact, Held, Joined, Source
from extproc.prompt import root_seed
from extproc.serve.expectations import Expectations
from extproc.serve.pool import Pool
from extproc.telemetry import LogOnce, Metrics
from extproc.terms import BlockKey, Endpoint, InstanceId

logger = logging.getLogger("homing.events")

TICK_S: Final = 0.25
"""How often it is looked who is to be followed, what has expired, and what is to be counted."""

QUIET_S: Final = 1.0
"""So long nobody else must have said anything of an instance before its events are told anew."""

OTHERS_S: Final = 600.0
"""After so long who reads an instance lets expire what another replica's pick expected there: that
replica does it by itself, unless it is gone."""

GRACE_S: Final = 15.0
"""So long after its stream was live the index keeps more of an instance than its capacity: it would
evict, in an order of its own, what is still there when the connection is back a moment later."""

AGAIN_S: Final = 30.0
"""After a fault of ours in an instance's events, they are read from the start after so long."""

STATES: Final = ("down", "catching_up", "partial", "live")

_OF_EVENTS: Final = (Held, Dropped, Cleared, Joined)
"""What changes what events have told."""

_ROOTS: Final = 4096
"""Roots remembered in each pool, of adapters and salts."""


@dataclass(frozen=True, slots=True)
class _Followed:
    """What makes it another stream when it changes."""

    pool: str
    instance: InstanceId
    endpoint: Endpoint
    address: Address
    block_size: int
    model: str
    secret: bytes


@dataclass(slots=True)
class _Follower:
    pool: Pool
    subscription: Subscription
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    live_at: float = float("-inf")
    """When its stream was live last."""
    failed: float | None = None
    """When a fault of ours ended it; None if none did."""
    disputed: float | None = None
    """When somebody else last said something of the instance; None if that was answered."""

    @property
    def stream(self) -> Stream:
        return self.subscription.stream


class KvEvents:
    """Follows the engines of all pools that publish events.

    With a shared log, those of them that this replica is to read. Two replicas can write about one
    instance where one of them does not know yet, or did not reach the log for a while, that the
    other has taken over. So who reads listens to what others say, and tells it all anew.
    """

    def __init__(self, pools: Callable[[], Iterable[Pool]], metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics
        self._reader = EventReader()
        self._overhears: dict[str, Expectations] = {}
        """By pool, what other replicas' picks expect of the instances that are read here."""
        self._assured: dict[str, frozenset[InstanceId]] = {}
        self._followers: dict[_Followed, _Follower] = {}
        self._once = LogOnce(logger)

    def emptied(self, pool: str, instance: InstanceId) -> bool:
        """An instance's cache is empty now, as something else says than its events.

        False where nobody follows its events, so that it has to be cleared. (Another replica that
        does sees the same signs.)
        """
        for followed, follower in self._followers.items():
            if (followed.pool, followed.instance) == (pool, instance):
                self._reader.do(follower.subscription, follower.stream.emptied)
                return True
        return any(one.config.events is not None for one in self._pools() if one.name == pool)

    def contradicted(self, pool: str, facts: Iterable[Fact]) -> None:
        """These facts were folded and are not ours: what they say is not from the events."""
        about = {fact.instance for fact in facts if type(fact) in _OF_EVENTS}
        for followed, follower in self._followers.items():
            if followed.pool == pool and followed.instance in about:
                follower.disputed = monotonic()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    self.tick(monotonic())
                except Exception as fault:  # a pick needs none of it, and the next tick may do
                    self._metrics.errors.labels("kv_events").inc()
                    self._once.warning(f"{type(fault)}", "KV events: %s", type(fault).__name__)
                await asyncio.sleep(TICK_S)
        finally:
            await self._reader.close()

    def tick(self, now: float) -> None:
        """See who is to be followed, let expire what is due, and count. now: monotonic seconds."""
        pools = list(self._pools())
        self._begin_anew(now)
        self._follow(pools)
        for follower in self._followers.values():
            if follower.disputed is not None and now - follower.disputed >= QUIET_S:
                follower.disputed = None
                self._reader.do(follower.subscription, follower.stream.restate)
        for pool in pools:
            self._assure(pool, now)
            self._expire(pool, now)
        self._count(pools)

    def _begin_anew(self, now: float) -> None:
        """Start again, after a while, what a fault of ours has ended."""
        for followed, follower in list(self._followers.items()):
            fault = follower.subscription.fault
            if fault is not None and follower.failed is None:
                follower.failed = now
                self._metrics.errors.labels("kv_events").inc()
                frame = traceback.extract_tb(fault.__traceback__)[-1]
                place = f"{Path(frame.filename).name}:{frame.lineno}"
                self._once.warning(place, "KV events: %s at %s", type(fault).__name__, place)
            elif follower.failed is not None and now - follower.failed >= AGAIN_S:
                del self._followers[followed]

    def _follow(self, pools: Sequence[Pool]) -> None:
        wanted = {
            followed: pool
            for pool in pools
            if pool.config.events is not None and pool.log.secret(pool.name) == pool.secret
            for instance in pool.instances
            if pool.log.reads(pool.name, instance.id)
            for followed in (_followed(pool, instance, pool.config.events),)
        }
        for followed in self._followers.keys() - wanted.keys():
            self._reader.unsubscribe(self._followers.pop(followed).subscription)
        for followed, pool in wanted.items():
            if pool.name not in self._overhears:
                self._overhears[pool.name] = Expectations()
                pool.log.overhear(pool.name, partial(self._overheard, pool.name))
            if followed not in self._followers:
                self._followers[followed] = self._start(followed, pool)

    def _overheard(self, pool: str, facts: Sequence[Fact]) -> None:
        self.contradicted(pool, [fact for fact in facts if _source(fact) is Source.EVENT])
        picks = [fact for fact in facts if type(fact) is Held and fact.source is Source.PICK]
        if picks:
            read = {one.instance for one in self._followers if one.pool == pool}
            for fact in picks:
                if fact.keys and fact.instance in read:
                    due = monotonic() + OTHERS_S
                    self._overhears[pool].add(fact.instance, fact.keys, due)

    def _start(self, followed: _Followed, pool: Pool) -> _Follower:
        find_parent = partial(pool.routed.parent_of, followed.instance)
        fold = Fold(followed.instance, followed.block_size, _root(followed), find_parent)
        stream = Stream(
            fold,
            replayable=followed.address.replay is not None,
            rank=followed.address.rank,
            warm=pool.index.held_blocks(followed.instance) > 0,
        )
        return _Follower(pool, self._reader.subscribe(followed.address, stream, pool.append))

    def _assure(self, pool: Pool, now: float) -> None:
        """Where events say what an instance holds, its capacity is only a bound.

        Before it was, the index may have forgotten some of it: then it is told again.
        """
        own = {f.instance: one for f, one in self._followers.items() if one.pool is pool}
        for follower in own.values():
            if follower.stream.live:
                follower.live_at = now
        live = frozenset(name for name, one in own.items() if now - one.live_at < GRACE_S)
        if live != self._assured.get(pool.name, frozenset()):
            self._assured[pool.name] = live
            pool.log.assure(pool.name, live)
        assured = pool.log.assured(pool.name)
        if assured != pool.assured:
            new = assured - pool.assured
            pool.assured = assured
            pool.enrol()
            for name in new & own.keys():
                self._reader.do(own[name].subscription, own[name].stream.fold.restate)

    def _expire(self, pool: Pool, now: float) -> None:
        facts = pool.expectations.expired(now, pool.assured.__contains__)
        if pool.name in self._overhears:
            facts += self._overhears[pool.name].expired(now, pool.assured.__contains__)
        if facts:
            self._metrics.expired.labels(pool.name).inc(len(facts))
            pool.append(facts)

    def _count(self, pools: Sequence[Pool]) -> None:
        states = {pool.name: Counter[str]() for pool in pools if pool.config.events is not None}
        for follower in self._followers.values():
            name, stream = follower.pool.name, follower.stream
            states[name][stream.state] += 1
            for metric, counts in (
                (self._metrics.event_troubles, stream.counts),
                (self._metrics.event_blocks_skipped, stream.fold.skipped),
                (self._metrics.event_blocks, stream.fold.applied),
            ):
                counted = follower.counted.setdefault(metric._name, Counter())
                for what, count in counts.items():
                    if count > counted[what]:
                        metric.labels(name, what).inc(count - counted[what])
                        counted[what] = count
        self._metrics.event_streams.clear()
        for name, counts in states.items():
            for state in STATES:
                self._metrics.event_streams.labels(name, state).set(counts[state])


def _source(fact: Fact) -> Source | None:
    return fact.source if isinstance(fact, Held | Dropped | Cleared) else None


def _followed(pool: Pool, instance: Instance, events: Events) -> _Followed:
    ports = instance.events or events
    return _Followed(
        pool.name,
        instance.id,
        instance.endpoint,
        Address.beside(
            instance.endpoint, ports.port, ports.replay_port, events.topic, instance.rank
        ),
        pool.config.block_size,
        pool.config.models[0].name,
        pool.secret,
    )


def _root(followed: _Followed) -> Root:
    @lru_cache(_ROOTS)
    def root(adapter: str, salt: str) -> BlockKey:
        return root_seed(
            secret=followed.secret,
            model=followed.model,
            adapter=adapter,
            salt=salt,
            block_size=followed.block_size,
        )

    return root
