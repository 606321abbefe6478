"""`homing serve` with its log in etcd: what one process learns, all have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.etcd.relay import relay
from tests.etcd.server import Cluster, cluster
from tests.serve.process import Homing, readiness, running, started
from tests.serve.proxy import LONG, ask, chat

PATIENCE_S = 60


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path / "etcd") as up:
        yield up


def log(etcd: Cluster, **more: Any) -> dict[str, Any]:
    return {"kind": "etcd", "endpoints": etcd.endpoints, **more}


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


async def turn(homing: Homing, words: str) -> str:
    """A whole request; the instance that it went to."""
    async with homing.channel() as channel:
        exchange, name = await ask(channel, chat(words))
        await exchange.answer(200)
        await exchange.end()
    return name


async def metrics(homing: Homing) -> dict[str, float]:
    """Samples by name and labels, as they are written."""
    async with aiohttp.ClientSession() as http, http.get(f"{homing.admin}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return {name: float(value) for name, value in (s.rsplit(" ", 1) for s in lines if s[:1] != "#")}


async def until(homing: Homing, sample: str, value: float) -> None:
    """Wait until a metric is at least that."""
    async with asyncio.timeout(PATIENCE_S):
        while (await metrics(homing)).get(sample, 0.0) < value:
            await asyncio.sleep(0.02)


async def learnt(homing: Homing, words: str) -> str:
    """Ask until the index has something: where that is."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            home = await turn(homing, words)
            if (await metrics(homing)).get(BLOCKS):
                return home


HOME = 'homing_picks_total{pool="test",reason="",why="home"}'
PUTS = 'homing_log_puts_total{pool="test"}'
FACTS = 'homing_log_facts_total{pool="test"}'
BLOCKS = 'homing_index_blocks{pool="test"}'
WARM = 'homing_log_warm{pool="test"}'


async def test_a_conversation_comes_home_through_another_replica(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(running(folder(tmp_path, name), log=log(etcd)))
            for name in ("one", "other")
        ]
        homes = {number: await turn(one, f"{number} {LONG}") for number in range(6)}
        await until(other, FACTS, (await metrics(one))[FACTS])
        for number, home in homes.items():
            assert await turn(other, f"{number} {LONG} and more") == home
        assert (await metrics(other))[HOME] == 6


async def test_a_process_that_starts_again_is_warm(etcd: Cluster, tmp_path: Path) -> None:
    async with running(folder(tmp_path, "first"), log=log(etcd)) as first:
        homes = {number: await turn(first, f"{number} {LONG}") for number in range(6)}
        first.process.terminate()
        assert await first.ended() == 0
    async with running(folder(tmp_path, "second"), log=log(etcd)) as second:
        for number, home in homes.items():
            assert await turn(second, f"{number} {LONG}") == home
        assert (await metrics(second))[HOME] == 6


async def test_without_etcd_it_serves_on_what_it_picked_itself_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path / "etcd", start=False) as etcd:
        settings = log(etcd, warm_timeout_s=0.5)
        async with running(folder(tmp_path, "homing"), log=settings) as homing:
            homes = {number: await turn(homing, f"{number} {LONG}") for number in range(4)}
            for number, home in homes.items():
                assert await turn(homing, f"{number} {LONG} and more") == home
            found = await metrics(homing)
            assert (found[HOME], found[WARM]) == (4, 0)
            async with aiohttp.ClientSession() as http, http.get(f"{homing.admin}/readyz") as ready:
                assert "cold" in await ready.text()
            await etcd.start()
            await until(homing, WARM, 1)
            # What was keyed with a secret of its own never gets into the log.
            await learnt(homing, f"5 {LONG}")
            assert (await metrics(homing))[BLOCKS] < 60  # of one conversation, not of five
            assert "start cold: test" in homing.log.read_text()


async def test_readiness_waits_for_the_log(tmp_path: Path) -> None:
    async with cluster(tmp_path / "etcd", start=False) as etcd:
        settings = log(etcd, warm_timeout_s=PATIENCE_S)
        async with started(folder(tmp_path, "homing"), log=settings) as homing:
            async with asyncio.timeout(PATIENCE_S):
                while await readiness(homing) is None:
                    await asyncio.sleep(0.02)
            assert await readiness(homing) == 503
            await etcd.start()
            async with asyncio.timeout(PATIENCE_S):
                while await readiness(homing) != 200:
                    await asyncio.sleep(0.02)
            assert (await metrics(homing))[WARM] == 1


async def test_instances_join_again_in_a_log_that_was_emptied(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with (
        cluster(tmp_path / "new") as new,
        relay(etcd.endpoints[0]) as wire,
        running(folder(tmp_path, "homing"), log=log(etcd, endpoints=[wire.endpoint])) as homing,
    ):
        await turn(homing, LONG)
        await wire.cut()
        wire.member = new.endpoints[0]
        await wire.mend()
        await until(homing, 'homing_log_reloads_total{pool="test",reason="another etcd"}', 1)
        home = await learnt(homing, LONG)
        assert await turn(homing, f"{LONG} and more") == home
