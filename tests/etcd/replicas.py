"""Replicas without their server: a log in etcd with the indexes that fold it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from extproc.config import EtcdLog as Settings
from extproc.index import Fact, Joined, PrefixIndex
from extproc.log import IndexSnapshots
from extproc.log.etcd import EtcdLog
from extproc.log.etcd.client import Away
from extproc.log.etcd.snapshotter import LostLead, Snapshotter
from extproc.log.etcd.state import PoolMetrics
from extproc.telemetry import Metrics
from tests.etcd.server import Cluster
from tests.index.chains import A, B, held

POOL = "p"
PATIENCE_S = 60


class Replica:
    """One log, and the index of its pool."""

    def __init__(self, etcd: Cluster, **settings: Any) -> None:
        self.metrics = Metrics()
        values: dict[str, Any] = {
            "kind": "etcd",
            "endpoints": tuple(etcd.endpoints),
            "warm_timeout_s": 30.0,
            **settings,
        }
        self.log = EtcdLog(Settings(**values), self.metrics)
        self.index = PrefixIndex()
        self.facts: list[Fact] = []
        self.snapshots = IndexSnapshots(POOL, self.index, lambda: self.log.secret(POOL) or b"")
        self.log.subscribe(POOL, self._apply, self._reload, self.snapshots)

    def _apply(self, _: int, fact: Fact) -> None:
        self.facts.append(fact)
        self.index.apply(fact)

    def _reload(self) -> None:
        self.facts.clear()
        self.index.reset()

    def append(self, *facts: Fact) -> int:
        return self.log.append(POOL, facts)

    @property
    def revision(self) -> int:
        return self.log.revision(POOL)

    @property
    def digest(self) -> int:
        """Of the index, with nothing left to fold."""
        while self.index.backlog:
            self.index.step()
        return self.index.digest

    @property
    def state(self) -> Any:
        return self.log.seat(POOL).state

    def number(self, name: str, **labels: str) -> float:
        """Of a metric."""
        return self.metrics.registry.get_sample_value(name, {"pool": POOL, **labels}) or 0.0

    async def get(self, key: bytes) -> bytes:
        """What etcd has there."""
        assert self.log._client is not None
        answer = await self.log._client.call(lambda c: c.kv.get(key))
        return bytes(answer.kvs[0].value)

    async def put(self, key: str, value: bytes) -> None:
        """Write over the log's head."""
        assert self.log._client is not None
        await self.log._client.call(lambda c: c.kv.put(key, value))

    async def snapshot(self) -> None:
        """Write a snapshot now, if this replica leads and reaches etcd."""
        log = self.log
        assert log._client is not None
        assert log._session is not None
        metrics = PoolMetrics(self.metrics, POOL)
        seat = log.seat(POOL)
        writer = Snapshotter(log._client, log._session, seat, log._settings, metrics)
        with suppress(Away, LostLead):
            await writer.snapshot()

    def die(self) -> None:
        """As a process that is killed: nothing more is written, nothing given back."""
        for task in self.log._tasks:
            task.cancel()

    def stop_following(self) -> None:
        """Let it read no more of the log."""
        for task in self.log._tasks:
            if "Follower" in repr(task.get_coro()):
                task.cancel()

    async def settled(self) -> None:
        """Wait until all that was appended came back."""
        ticket = self.append()
        await until(lambda: self.log.settled(POOL) >= ticket)


@asynccontextmanager
async def replica(etcd: Cluster, **settings: Any) -> AsyncIterator[Replica]:
    """One that has read what there is."""
    one = Replica(etcd, **settings)
    await one.log.open()
    try:
        yield one
    finally:
        await one.log.close()


async def until(true: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)


async def alike(*replicas: Replica) -> None:
    """Wait until all have read as far, and see that they are the same."""
    await until(lambda: len({one.revision for one in replicas}) == 1)
    assert len({one.digest for one in replicas}) == 1


class Turns:
    """Facts that come all the time, as conversations make them."""

    def __init__(self, *replicas: Replica) -> None:
        self._replicas = replicas
        self._task: asyncio.Task[None] | None = None
        self.count = 0

    async def __aenter__(self) -> "Turns":
        self._replicas[0].append(Joined(A, 16), Joined(B, 16))
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            for one in self._replicas:
                one.append(held(A if self.count % 3 else B, f"{self.count:05d} prompt"))
                self.count += 1
            await asyncio.sleep(0.01)

    async def more(self, count: int = 50) -> None:
        """Wait until there were so many further ones."""
        wanted = self.count + count
        await until(lambda: self.count >= wanted)
