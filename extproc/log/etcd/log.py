"""The fact log in etcd: what the replicas of a pool share, and what survives all of them."""

import asyncio
import logging
import secrets
import traceback
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from extproc.config import EtcdLog as Settings
from extproc.index import Fact
from extproc.log.etcd.client import Away, Client
from extproc.log.etcd.follower import Follower
from extproc.log.etcd.keys import Keys
from extproc.log.etcd.readers import Readers
from extproc.log.etcd.session import GRACE_S, Seat, Session
from extproc.log.etcd.snapshotter import Snapshotter
from extproc.log.etcd.state import PoolMetrics, PoolState
from extproc.log.etcd.writer import Writer
from extproc.log.interface import (
    Apply,
    LoadParty,
    LogClosedError,
    Overhear,
    Reload,
    Snapshots,
)
from extproc.telemetry import Metrics
from extproc.terms import InstanceId

logger = logging.getLogger("homing.log")

CLOSE_S = 2.0
"""Longest that facts which were not written yet hold up the end."""

AGAIN_S = 1.0
"""How long after a fault of ours a loop begins anew."""

REJECTED = ("checksum", "malformed", "place", "repeated", "rewritten")


class EtcdLog:
    """A `FactLog` of several processes. One lease, one connection, four loops a pool:

    the follower reads, the writer writes, the session says who is there and who leads, and the
    leader's snapshotter keeps it small.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._writer = secrets.randbits(64)
        self._seats: dict[str, Seat] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._client: Client | None = None
        self._session: Session | None = None
        self._readers: Readers | None = None
        self._closed = False

    def revision(self, pool: str) -> int:
        """Etcd's revision of the last record that was folded."""
        return self._seats[pool].state.fold.revision

    def settled(self, pool: str) -> int:
        """The latest ticket up to which all came back or was left out."""
        return self._seats[pool].state.outbox.settled

    def secret(self, pool: str) -> bytes | None:
        """The pool's; None until etcd was reached once."""
        return self._seats[pool].state.secret

    def warm(self, pool: str) -> bool:
        """Whether the log was read once to its end."""
        return self._seats[pool].state.warm.is_set()

    @property
    def grace_s(self) -> float:
        """A replica that hangs is not forgotten before its lease; nor one that begins."""
        return GRACE_S

    def may_remove(self, pool: str, instance: InstanceId) -> bool:
        """The leader does, once all live replicas have said what they list."""
        seat = self._seats[pool]
        return self._session is not None and self._session.leads(seat) and seat.lacks(instance)

    def reads(self, pool: str, instance: InstanceId) -> bool:
        """One replica does, while its short lease holds; another within three seconds."""
        return self._readers is not None and self._readers.reads(
            self._seats[pool].state.keys, instance
        )

    def assure(self, pool: str, instances: frozenset[InstanceId]) -> None:
        """It is told with the lease of `reads`, and over with it."""
        if self._readers is not None:
            self._readers.assure(pool, instances)

    def assured(self, pool: str) -> frozenset[InstanceId]:
        """As the readers that are there have told."""
        return self._readers.assured(pool) if self._readers is not None else frozenset()

    def overhear(self, pool: str, heard: Overhear) -> None:
        """Give `heard` what other replicas wrote."""
        self._seats[pool].state.overhearing.append(heard)

    def seat(self, pool: str) -> Seat:
        """The pool's place among the replicas, for tests."""
        return self._seats[pool]

    def share(self, pool: str, party: LoadParty) -> None:
        """Let the other replicas know of the pool's load, and it of theirs."""
        self._seats[pool].party = party

    def subscribe(
        self,
        pool: str,
        apply: Apply,
        reload: Reload | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Give `apply` the pool's facts. Once it is open, a further pool is read at once.

        Raises ValueError without `reload`, and for a second subscriber of an open log.
        """
        if reload is None:
            raise ValueError("this log may start over: give reload")
        seat = self._seats.get(pool)
        if seat is None:
            keys = Keys(self._settings.prefix, pool)
            bounds = (self._settings.snapshot_bytes, self._settings.backlog_bytes)
            seat = self._seats[pool] = Seat(PoolState(keys, self._writer, *bounds))
            self._measure(pool, seat)
        elif self._session is not None:
            raise ValueError("an open log has given facts already: subscribe before open")
        state = seat.state
        state.subscribers.append(apply)
        state.reloads.append(reload)
        state.snapshots = state.snapshots or snapshots
        if self._session is not None:
            self._start_pool(pool, seat)

    def append(self, pool: str, facts: Sequence[Fact]) -> int:
        """Queue the facts; they are written within 25 ms, or when etcd is back."""
        if self._closed:
            raise LogClosedError("the fact log is closed")
        state = self._seats[pool].state
        ticket = state.outbox.append(facts, monotonic())
        state.appended.set()
        return ticket

    async def open(self) -> None:
        """Read what there is; waits for it no longer than `warm_timeout_s`."""
        self._client = Client(self._settings)
        self._session = Session(self._client, self._writer)
        self._readers = Readers(self._client, self._writer)
        for pool, seat in self._seats.items():
            self._start_pool(pool, seat)
        self._start(self._session.run)
        self._start(self._readers.run)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.warm_timeout_s):
                for seat in self._seats.values():
                    await seat.state.warm.wait()
        cold = [pool for pool in self._seats if not self.warm(pool)]
        if cold:
            logger.error(
                "the log was not read within log.warm_timeout_s (%g s); start cold: %s",
                *(self._settings.warm_timeout_s, ", ".join(cold)),
            )

    async def close(self) -> None:
        """Write what waits, leave the lease, and stop."""
        self._closed = True
        if self._client is None or self._session is None or self._readers is None:
            return
        with suppress(TimeoutError, Away):
            async with asyncio.timeout(CLOSE_S):
                # Short, and at the end of all: nobody has to tell.
                while any(not s.state.outbox.idle for s in self._seats.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        with suppress(TimeoutError, Away):
            async with asyncio.timeout(CLOSE_S):
                await self._readers.end()
                await self._session.end()
        await self._client.close()
        self._client = self._session = self._readers = None

    def _start_pool(self, pool: str, seat: Seat) -> None:
        assert self._client is not None
        assert self._session is not None
        assert self._readers is not None
        readers = self._readers
        client, session, state = self._client, self._session, seat.state
        metrics = PoolMetrics(self._metrics, pool)
        session.seats.append(seat)
        self._start(lambda: Follower(client, state, metrics).run())
        self._start(lambda: Writer(client, state, metrics).run())
        self._start(lambda: session.lead(seat))
        self._start(lambda: session.listen(seat))
        self._start(lambda: session.speak(seat))
        self._start(lambda: readers.listen(state.keys))
        self._start(lambda: Snapshotter(client, session, seat, self._settings, metrics).run())
        self._metrics.log_leader.labels(pool).set_function(lambda: session.leads(seat))

    def _start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        self._tasks.append(asyncio.ensure_future(self._keep(work)))

    async def _keep(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run a loop that never ends; after a fault of ours begin it anew, or all stands still."""
        while True:
            try:
                await work()
            except Exception as fault:
                self._metrics.errors.labels("log").inc()
                frame = traceback.extract_tb(fault.__traceback__)[-1]
                place = f"{Path(frame.filename).name}:{frame.lineno}"
                logger.error("the log failed: %s at %s", type(fault).__name__, place)
            await asyncio.sleep(AGAIN_S)

    def _measure(self, pool: str, seat: Seat) -> None:
        """Numbers that are read when they are asked for."""
        metrics, state = self._metrics, seat.state
        outbox = state.outbox
        for gauge, read in (
            (metrics.log_dropped_facts, lambda: outbox.dropped),
            (metrics.log_backlog_bytes, lambda: outbox.waiting_bytes),
            (metrics.log_behind_seconds, lambda: monotonic() - (outbox.oldest or monotonic())),
            (metrics.log_bytes, lambda: state.size.bytes),
            (metrics.log_skipped, lambda: state.fold.skipped),
            (metrics.log_revision, lambda: state.fold.revision),
            (metrics.log_warm, lambda: state.warm.is_set()),
            (metrics.log_replicas, lambda: len(seat.others) + 1),
        ):
            gauge.labels(pool).set_function(read)
        for reason in REJECTED:
            metrics.log_rejected.labels(pool, reason).set_function(
                lambda reason=reason: state.fold.rejected[reason]  # type: ignore[misc]
            )
