"""Engines that register themselves in etcd, against a real one."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from extproc.config import EtcdLog, ListedInstance
from extproc.engines import Instance
from extproc.engines.discovery import DiscoveryError
from extproc.engines.discovery.etcd import EtcdDiscovery
from extproc.engines.registration import Registration
from extproc.terms import Endpoint, InstanceId
from tests.engines.server import metrics_server, page
from tests.etcd.server import Cluster, cluster

KEY = "/homing/main/instances/"
BEAT_S = 0.05


def settings(etcd: Cluster) -> EtcdLog:
    return EtcdLog(kind="etcd", endpoints=tuple(etcd.endpoints))


def entry(name: str, endpoint: str = "10.0.0.7:8000") -> ListedInstance:
    return ListedInstance(name=InstanceId(name), endpoint=Endpoint(endpoint))


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path / "etcd") as running:
        yield running


class Watched:
    """A discovery that is followed, list by list."""

    def __init__(self, lists: AsyncGenerator[Sequence[Instance], None]) -> None:
        self._lists = lists

    async def next(self) -> dict[str, str]:
        async with asyncio.timeout(60):
            return {one.id: one.state for one in await anext(self._lists)}

    async def until(self, wanted: dict[str, str]) -> None:
        """Beats write the same again and again."""
        while await self.next() != wanted:
            pass


@asynccontextmanager
async def watching(etcd: Cluster) -> AsyncIterator[Watched]:
    lists = EtcdDiscovery(settings(etcd), "main", scraped=True).watch()
    try:
        yield Watched(lists)
    finally:
        await lists.aclose()


@asynccontextmanager
async def registered(
    etcd: Cluster, one: ListedInstance, health: str | None = None
) -> AsyncIterator[Registration]:
    """A sidecar that lives as long as the block runs."""
    registration = Registration(settings(etcd), "main", one, health, beat_s=BEAT_S)
    running = asyncio.create_task(registration.run())
    try:
        yield registration
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await registration.end()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_engines_are_there_as_long_as_their_sidecars(etcd: Cluster) -> None:
    async with watching(etcd) as watched:
        assert await watched.next() == {}
        async with registered(etcd, entry("a")):
            await watched.until({"a": "ready"})
            async with registered(etcd, entry("b")) as b:
                await watched.until({"a": "ready", "b": "ready"})
                b.drain()
                await watched.until({"a": "ready", "b": "draining"})
            await watched.until({"a": "ready"})
        await watched.until({})


async def test_an_engine_that_does_not_answer_yet_is_starting(etcd: Cluster) -> None:
    async with AsyncExitStack() as stack:
        watched = await stack.enter_async_context(watching(etcd))
        loading = b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n"
        engine = await stack.enter_async_context(metrics_server(loading))
        await stack.enter_async_context(registered(etcd, entry("a"), engine.url))
        await watched.until({"a": "starting"})
        await until(lambda: len(engine.requests) > 2)
        engine.answer = page(b"")
        await watched.until({"a": "ready"})


async def test_an_entry_is_written_again_after_etcd_was_away(etcd: Cluster, tmp_path: Path) -> None:
    async with registered(etcd, entry("a")):
        async with watching(etcd) as watched:
            await watched.until({"a": "ready"})
            await etcd.kill()
            with pytest.raises(DiscoveryError, match="etcd: "):
                await watched.until({"nobody": "ever"})
        await etcd.start()
        await etcd.ctl("del", "--prefix", KEY)
        async with watching(etcd) as watched:
            await watched.until({"a": "ready"})


async def test_an_entry_whose_lease_is_lost_comes_back(etcd: Cluster) -> None:
    async with registered(etcd, entry("a")), watching(etcd) as watched:
        await watched.until({"a": "ready"})
        leases = (await etcd.ctl("lease", "list")).split()[3:]
        await etcd.ctl("lease", "revoke", leases[-1])
        await watched.until({})
        await watched.until({"a": "ready"})


async def test_an_entry_says_all_that_a_file_may(etcd: Cluster) -> None:
    value = {"endpoint": "[::1]:8000", "rank": 2, "capacity_blocks": 9, "state": "starting"}
    await etcd.ctl("put", f"{KEY}x", json.dumps(value))
    lists = EtcdDiscovery(settings(etcd), "main", scraped=False).watch()
    (one,) = await anext(lists)
    await lists.aclose()
    assert (one.id, one.endpoint, one.rank, one.state) == ("x", "[::1]:8000", 2, "starting")
    assert (one.capacity_blocks, one.metrics) == (9, None)


async def test_what_is_no_entry_is_left_out_and_said_once(
    etcd: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.ctl("put", f"{KEY}bad", "nothing")
    await etcd.ctl("put", f"{KEY}worse", '{"endpoint": "engine.example:8000"}')
    await etcd.ctl("put", "/homing/other/instances/x", '{"endpoint": "10.0.0.1:1"}')
    async with watching(etcd) as watched, registered(etcd, entry("a")):
        await watched.until({"a": "ready"})
        await watched.next()
    said = [one.getMessage() for one in caplog.records if "left out" in one.getMessage()]
    assert len(said) == 2
    assert "instance worse is left out: endpoint" in said[1]


async def test_the_command_registers_drains_and_ends(etcd: Cluster) -> None:
    async with AsyncExitStack() as stack:
        watched = await stack.enter_async_context(watching(etcd))
        engine = await stack.enter_async_context(metrics_server(page(b"")))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc", "register", engine.endpoint),
            *("--pool", "main", "--name", "gpu-a", "--drain-s", "60"),
            *(part for one in etcd.endpoints for part in ("--etcd", one)),
            env=os.environ,
        )
        await watched.until({"gpu-a": "ready"})
        assert engine.requests[0].startswith("GET /health ")
        process.send_signal(signal.SIGTERM)
        await watched.until({"gpu-a": "draining"})
        process.send_signal(signal.SIGTERM)
        await watched.until({})
        assert await process.wait() == 0


async def test_a_wrong_endpoint_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    from extproc.cli import main

    assert main(["register", "engine:8000", "--pool", "main", "--etcd", "127.0.0.1:1"]) == 2
    assert "endpoint: " in capfd.readouterr().err
