"""`log.snapshot`: `homing serve` as a process, ended and started again."""

import asyncio
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

import aiohttp
import pytest

from tests.serve.process import Homing, running
from tests.serve.proxy import LONG, ask, chat

LOG = {"kind": "memory", "snapshot": "homing.snapshot", "interval_s": 1}
SOON = {"delay_s": 0, "timeout_s": 5}


async def numbers(homing: Homing) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{homing.admin}/pools/test/index") as answer,
    ):
        found: dict[str, Any] = await answer.json()
        return found


async def turn(homing: Homing, words: str) -> str:
    """A whole request; who was picked."""
    async with homing.channel() as channel:
        exchange, name = await ask(channel, chat(words))
        await exchange.answer(200)
        await exchange.end()
        return name


async def ended(homing: Homing, by: Signals) -> None:
    homing.process.send_signal(by)
    assert await homing.ended() == (0 if by is SIGTERM else -by)


async def test_turns_come_home_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        homes = {words: await turn(homing, words) for words in (LONG, f"Else. {LONG}")}
        before = await numbers(homing)
        await ended(homing, SIGTERM)
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        after = await numbers(homing)
        assert after["held"] > 40
        for what in ("held", "digest", "facts", "instances"):
            assert after[what] == before[what]
        for words, home in homes.items():
            assert await turn(homing, f"{words} And then?") == home
        assert "pool test is warm" in homing.log.read_text()
        await ended(homing, SIGTERM)


@pytest.mark.slow
async def test_a_crash_loses_what_came_after_the_last_write(tmp_path: Path) -> None:
    async with running(tmp_path, log=LOG) as homing:
        home = await turn(homing, LONG)
        before = await numbers(homing)
        async with asyncio.timeout(30):
            while not (tmp_path / "homing.snapshot").exists():
                await asyncio.sleep(0.05)
        await ended(homing, SIGKILL)
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        assert (await numbers(homing))["digest"] == before["digest"]
        assert await turn(homing, f"{LONG} And then?") == home
        await ended(homing, SIGTERM)


@pytest.mark.slow
async def test_an_instance_at_another_endpoint_is_a_new_one(tmp_path: Path) -> None:
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        home = await turn(homing, LONG)
        pools = homing.config["pools"]
        await ended(homing, SIGTERM)
    (moved,) = (one for one in pools[0]["instances"] if one["name"] == home)
    moved["endpoint"] = "10.0.0.9:8000"
    gone = next(one for one in pools[0]["instances"] if one is not moved)
    pools[0]["instances"].remove(gone)
    async with running(tmp_path, log=LOG, drain=SOON, pools=pools) as homing:
        found = await numbers(homing)
        assert found["held"] == 0
        assert gone["name"] not in found["instances"]
        assert "pool test is warm" in homing.log.read_text()
        await ended(homing, SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "foreign"])
async def test_a_file_that_cannot_be_used_is_a_cold_start_with_a_warning(
    tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "homing.snapshot"
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        await turn(homing, LONG)
        await ended(homing, SIGTERM)
    file.write_bytes(file.read_bytes()[:-1] if damage == "cut" else b"GIF89a")
    async with running(tmp_path, log=LOG, drain=SOON) as homing:
        assert (await numbers(homing))["held"] == 0
        assert f"{file} is not used, a cold start" in homing.log.read_text()
        await turn(homing, LONG)
        await ended(homing, SIGTERM)
    assert file.read_bytes().startswith(b"homing snapshot file 1\n")
