"""One replica reads an engine's events for all; when it is gone, another does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from extproc.config import EtcdLog as Settings
from extproc.demo.engine import serving as engine_serving
from extproc.demo.stack import _free_ports
from extproc.index import Dropped, Held, Source, Tier
from extproc.log.etcd import EtcdLog
from extproc.serve import App
from extproc.telemetry import Metrics
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys
from tests.etcd.replicas import POOL, Replica, replica, until
from tests.etcd.server import Cluster, cluster
from tests.serve.proxy import LONG, Exchange, chat, serving
from tests.serve.test_kv_events import BLOCKS, A, engine_at, settings

NAMES = [InstanceId(f"instance-{number}") for number in range(40)]


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path / "etcd") as up:
        yield up


def shares(*replicas: Replica) -> list[int]:
    """How many of the instances each reads."""
    return [sum(one.log.reads(POOL, name) for name in NAMES) for one in replicas]


async def test_each_instance_has_one_reader_and_all_have_some(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as two, replica(etcd) as three:
        await until(lambda: min(shares(one, two, three)) > 3)
        for name in NAMES:
            assert sum(each.log.reads(POOL, name) for each in (one, two, three)) == 1


async def test_a_replica_that_nobody_asks_stands_for_nothing(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd):
        await until(lambda: shares(one) == [len(NAMES)])


async def test_when_a_reader_is_killed_the_others_take_its_instances_and_keep_their_own(
    etcd: Cluster,
) -> None:
    async with replica(etcd) as one, replica(etcd) as two:
        await until(lambda: min(shares(one, two)) > 3 and sum(shares(one, two)) == len(NAMES))
        own = [name for name in NAMES if two.log.reads(POOL, name)]
        one.die()
        await until(lambda: shares(two) == [len(NAMES)])
        assert all(two.log.reads(POOL, name) for name in own)
        await until(lambda: shares(one) == [0])


async def test_a_reader_that_leaves_gives_its_instances_back_at_once(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        async with replica(etcd) as two:
            await until(lambda: min(shares(one, two)) > 3)
        await until(lambda: shares(one) == [len(NAMES)])


async def test_without_etcd_nobody_reads(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        await until(lambda: shares(one) == [len(NAMES)])
        await etcd.kill()
        await until(lambda: shares(one) == [0])
        await etcd.start()
        await until(lambda: shares(one) == [len(NAMES)])


async def test_what_a_reader_is_sure_of_all_replicas_know_until_it_is_gone(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        async with replica(etcd) as two:
            await until(lambda: min(shares(one, two)) > 3)
            two.log.assure(POOL, frozenset(NAMES[:2]))
            one.log.assure(POOL, frozenset(NAMES[3:4]))
            expected = {*NAMES[:2], NAMES[3]}
            await until(lambda: one.log.assured(POOL) == two.log.assured(POOL) == expected)
            two.log.assure(POOL, frozenset(NAMES[:1]))
            await until(lambda: one.log.assured(POOL) == {NAMES[0], NAMES[3]})
        await until(lambda: one.log.assured(POOL) == {NAMES[3]})


async def test_what_others_wrote_is_overheard_and_what_is_ours_is_not(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as two:
        heard: list[object] = []
        two.log.overhear(POOL, heard.extend)
        fact = Held(A, Tier.GPU, NO_BLOCK, PackedKeys(bytes([1]) * 8), Source.EVENT)
        other = Dropped(A, Tier.GPU, PackedKeys(bytes([1]) * 8), Source.EVENT)
        two.append(other)
        await two.settled()
        one.append(fact)
        await until(lambda: heard)
        assert heard == [fact]


@asynccontextmanager
async def another(etcd: Cluster, pool: str) -> AsyncIterator[EtcdLog]:
    """A log that folds a pool's facts into nothing."""
    log = EtcdLog(Settings(kind="etcd", endpoints=tuple(etcd.endpoints)), Metrics())
    log.subscribe(pool, lambda _, __: None, lambda: None)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


def blocks(app: App) -> int:
    return app.pools[0].index.held_blocks(A)


async def ready(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_when_the_reader_is_killed_another_makes_the_index_right(etcd: Cluster) -> None:
    """What the engine does while nobody reads is in its history."""
    ports = _free_ports(3)
    log = Settings(kind="etcd", endpoints=tuple(etcd.endpoints))
    shared = settings(*ports).model_copy(update={"log": log})
    async with (
        engine_serving(engine_at(*ports)) as engine,
        AsyncExitStack() as stack,
        aiohttp.ClientSession() as http,
    ):
        apps = [(await stack.enter_async_context(serving(shared)))[0] for _ in range(2)]
        await ready(lambda: any(A in app.pools[0].assured for app in apps))

        async def answer(words: str) -> None:
            url = f"{engine.url}/v1/chat/completions"
            async with http.post(url, data=chat(words, max_tokens=40)) as reply:
                await reply.read()

        def true() -> int:
            return len(engine.engine.cache._copies)

        for number in range(4):
            await answer(f"{number} {LONG}")
        await ready(lambda: all(blocks(app) == true() for app in apps))
        await ready(lambda: all(A in app.pools[0].assured for app in apps))
        (reader,) = [app for app in apps if app._log.reads("test", A)]
        (other,) = [app for app in apps if app is not reader]
        for task in reader._log._tasks:  # type: ignore[attr-defined]
            task.cancel()
        for number in range(4, 10):
            await answer(f"{number} {LONG}")
        await ready(lambda: other._log.reads("test", A))
        await ready(lambda: A in other.pools[0].assured and blocks(other) == true())


async def test_the_replica_that_picked_lets_expire_what_another_reads(etcd: Cluster) -> None:
    ports = _free_ports(3)
    log = Settings(kind="etcd", endpoints=tuple(etcd.endpoints))
    shared = settings(*ports, expire_s=0.0).model_copy(update={"log": log})
    async with (
        engine_serving(engine_at(*ports)),
        serving(shared) as (one, to_one),
        serving(shared) as (two, to_two),
    ):
        await ready(lambda: all(A in app.pools[0].assured for app in (one, two)))
        (instance,) = two.pools[0].index.instances()
        await ready(lambda: instance.limits[Tier.GPU] == 2 * BLOCKS)
        for channel in (to_one, to_two):
            exchange = Exchange(channel)
            await exchange.headers()
            await exchange.body(chat(LONG))
            await ready(lambda: blocks(one) > 20 and blocks(two) > 20)
            await exchange.end()
            await ready(lambda: blocks(one) == blocks(two) == 0)


async def test_what_a_replica_expected_that_is_gone_expires_all_the_same(etcd: Cluster) -> None:
    ports = _free_ports(3)
    log = Settings(kind="etcd", endpoints=tuple(etcd.endpoints))
    shared = settings(*ports).model_copy(update={"log": log})
    async with engine_serving(engine_at(*ports)), serving(shared) as (app, _):
        await ready(lambda: A in app.pools[0].assured)
        async with another(etcd, "test") as gone:
            keys = PackedKeys(bytes(range(16)))
            gone.append("test", [Held(A, Tier.GPU, NO_BLOCK, keys, Source.PICK)])
            await ready(lambda: blocks(app) == 2)
        assert app.kv_events is not None
        app.kv_events.tick(monotonic())
        assert blocks(app) == 2
        app.kv_events.tick(monotonic() + 601)
        await ready(lambda: blocks(app) == 0)


async def test_what_a_reader_that_lost_its_place_still_says_is_told_anew(etcd: Cluster) -> None:
    ports = _free_ports(3)
    log = Settings(kind="etcd", endpoints=tuple(etcd.endpoints))
    shared = settings(*ports, expire_s=0.0).model_copy(update={"log": log})
    async with (
        engine_serving(engine_at(*ports)) as engine,
        serving(shared) as (app, _),
        aiohttp.ClientSession() as http,
        another(etcd, "test") as stale,
    ):
        await ready(lambda: A in app.pools[0].assured)
        url = f"{engine.url}/v1/chat/completions"
        async with http.post(url, data=chat(LONG, max_tokens=40)) as reply:
            await reply.read()
        await ready(lambda: blocks(app) == len(engine.engine.cache._copies))
        never = PackedKeys(bytes(range(8)))
        stale.append("test", [Held(A, Tier.GPU, NO_BLOCK, never, Source.EVENT)])
        await ready(lambda: blocks(app) == len(engine.engine.cache._copies) + 1)
        await ready(lambda: blocks(app) == len(engine.engine.cache._copies))
