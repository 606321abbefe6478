"""Replicas that list different instances: on real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from extproc.config import Config, EtcdLog, Instance, Limits, Model, Pool
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.engines.discovery import instance_of
from extproc.log.etcd import log as etcd_log
from extproc.serve import App
from extproc.terms import Endpoint, InstanceId
from tests.etcd.replicas import until
from tests.etcd.server import Cluster, cluster
from tests.index.chains import held

GRACE_S = 1.0


@pytest.fixture
async def etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(etcd_log, "GRACE_S", GRACE_S)
    async with cluster(tmp_path) as running:
        yield running


def listed(*names: str) -> tuple[Instance, ...]:
    return tuple(
        Instance(name=InstanceId(name), endpoint=Endpoint(f"10.0.0.{ord(name)}:1"))
        for name in names
    )


@asynccontextmanager
async def serving(etcd: Cluster, *names: str) -> AsyncIterator[App]:
    pool = Pool(
        name="test",
        models=(Model(name="m", tokenizer=DEMO_TOKENIZER),),
        instances=listed(*names),
        metrics="off",
    )
    app = App(
        Config(
            listen="127.0.0.1:0",
            pools=(pool,),
            log=EtcdLog(kind="etcd", endpoints=tuple(etcd.endpoints)),
            limits=Limits(pick_timeout_ms=20_000),
        )
    )
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def knows(app: App) -> dict[str, int]:
    """Instances of the index, and the blocks that they hold."""
    index = app.pools[0].index
    return {one.name: index.held_blocks(one.name) for one in index.instances()}


def list_now(app: App, *names: str) -> None:
    """What a discovery does when it lists these."""
    pool = app.pools[0]
    pool.members.set_instances([instance_of(one, False) for one in listed(*names)])
    pool.enrol()


async def fill(app: App) -> None:
    """Let both hold something, for all replicas."""
    app.pools[0].append([held(InstanceId(name), f"prompt {name}") for name in "ab"])
    await until(lambda: knows(app) == {"a": 8, "b": 8})


async def test_a_replica_that_lists_less_takes_nothing_from_the_others(etcd: Cluster) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serving(etcd, "a", "b"))
        await fill(one)
        two = await stack.enter_async_context(serving(etcd, "a"))
        list_now(two, "a")
        three = await stack.enter_async_context(serving(etcd, "b"))
        ticks = three.pools[0].log.append("test", [])
        await until(lambda: three.pools[0].log.settled("test") >= ticks)
        for _ in range(3):
            await until_later(GRACE_S)
            assert [knows(app) for app in (one, two, three)] == [{"a": 8, "b": 8}] * 3


async def test_what_no_replica_lists_any_more_leaves_for_all(etcd: Cluster) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serving(etcd, "a", "b"))
        await fill(one)
        two = await stack.enter_async_context(serving(etcd, "a", "b"))
        for app in (one, two):
            list_now(app, "a")
        for app in (one, two):
            await until(lambda app=app: knows(app) == {"a": 8})


async def test_what_a_dead_replica_alone_listed_leaves_when_its_lease_is_over(
    etcd: Cluster,
) -> None:
    async with serving(etcd, "a") as one:
        async with serving(etcd, "a", "b") as two:
            await fill(two)
            await until(lambda: knows(one) == {"a": 8, "b": 8})
        await until(lambda: knows(one) == {"a": 8})


async def until_later(seconds: float) -> None:
    """Let a grace pass: nothing is waited for that could show earlier that it did."""
    await asyncio.sleep(seconds)
