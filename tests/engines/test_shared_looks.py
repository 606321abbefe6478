"""Replicas look at each engine's metrics once for all: on real etcd, with real HTTP servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from extproc.config import Config, EtcdLog, Instance, Limits, Model, Pool, Scraping
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.engines import Members
from extproc.engines.instances import Instance as Found
from extproc.engines.metrics import Reading
from extproc.routing import Outlook, Speed
from extproc.serve import App
from extproc.serve.shared_load import SharedLoad
from extproc.terms import Endpoint, InstanceId
from tests.engines.pages import vllm
from tests.engines.server import MetricsServer, metrics_server, page
from tests.etcd.server import cluster

QUICK = Scraping(busy_ms=20, idle_ms=20)


def config(etcd: list[str], servers: list[MetricsServer]) -> Config:
    pool = Pool(
        name="test",
        models=(Model(name="m", tokenizer=DEMO_TOKENIZER),),
        instances=tuple(Instance(endpoint=Endpoint(one.endpoint)) for one in servers),
        metrics=QUICK,
    )
    return Config(
        listen="127.0.0.1:0",
        pools=(pool,),
        log=EtcdLog(kind="etcd", endpoints=tuple(etcd)),
        limits=Limits(pick_timeout_ms=20_000),
    )


@asynccontextmanager
async def serving(settings: Config) -> AsyncIterator[App]:
    app = App(settings)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def looks(app: App, server: MetricsServer) -> bool:
    """Whether this replica looks at the engine itself."""
    return app._engines._scraper._entries[server.url].target.interval() < float("inf")


def running(app: App, server: MetricsServer) -> float | None:
    condition = app.pools[0].members.conditions.of(InstanceId(server.endpoint))
    return condition.reading.running if condition.reading else None


@pytest.mark.timeout(180)
async def test_one_replica_looks_at_an_engine_and_all_know_and_another_takes_over(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(cluster(tmp_path / "etcd"))
        servers = [
            await stack.enter_async_context(metrics_server(page(vllm(running=n)))) for n in range(6)
        ]
        settings = config(etcd.endpoints, servers)
        first = await stack.enter_async_context(serving(settings))
        async with serving(settings) as second:
            apps = (first, second)
            await until(lambda: all(sum(looks(app, s) for app in apps) == 1 for s in servers))
            await until(
                lambda: all(running(app, s) == n for app in apps for n, s in enumerate(servers))
            )
            for server in servers:
                server.answer = page(vllm(running=9))
            await until(lambda: all(running(app, s) == 9 for app in apps for s in servers))
            conditions = [app.pools[0].members.conditions for app in apps]
            gone = InstanceId(servers[0].endpoint)
            servers[0].answer = b""
            await until(lambda: not any(one.of(gone).alive for one in conditions))
            servers[0].answer = page(vllm(running=9))
            await until(lambda: all(one.of(gone).alive for one in conditions))
        await until(lambda: all(looks(first, s) for s in servers))
        for server in servers:
            server.answer = page(vllm(running=5))
        await until(lambda: all(running(first, s) == 5 for s in servers))


def party(*, reads: bool) -> tuple[SharedLoad, Members]:
    members = Members()
    members.set_instances([Found(InstanceId("a"), Endpoint("10.0.0.1:1"), metrics="http://a")])
    return SharedLoad(Outlook(Speed(1.0), 0.0), members, lambda _: reads), members


@pytest.mark.parametrize(
    "reading",
    [
        Reading(running=3, waiting=2),
        Reading(3, 2, None, 16, 100, 1.5e9, 2**40, 2**39, 7, 6, 5, 2**38, asleep=True),
        None,
    ],
    ids=["little", "all", "nothing"],
)
def test_what_is_told_is_what_was_seen(reading: Reading | None) -> None:
    (one, mine), (other, theirs) = party(reads=True), party(reads=False)
    mine.conditions.scraped(InstanceId("a"), reading, 0, 0, now=1e12, fresh_s=1.0)
    other.told(one.seen())
    assert theirs.conditions.of(InstanceId("a")).reading == reading


def test_who_looks_at_an_engine_itself_does_not_take_anothers_word() -> None:
    (one, mine), (other, theirs) = party(reads=True), party(reads=True)
    mine.conditions.scraped(InstanceId("a"), Reading(3, 2), 0, 0, now=1e12, fresh_s=1.0)
    other.told(one.seen())
    assert theirs.conditions.of(InstanceId("a")).reading is None


def test_who_does_not_look_for_all_tells_nothing() -> None:
    one, mine = party(reads=False)
    mine.conditions.scraped(InstanceId("a"), Reading(3, 2), 0, 0, now=1e12, fresh_s=1.0)
    assert list(one.seen()) == []
