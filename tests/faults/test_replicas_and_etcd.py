"""Faults of replicas and of etcd, while conversations go on: issue 7, "Faults"."""

import asyncio
import signal
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import pytest_asyncio

from tests.etcd.server import cluster
from tests.faults.world import ALIKE_S, POOL, World, world

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SNAPSHOT_BYTES = 200_000
"""A snapshot every few seconds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all: each fault leaves it as it was."""
    folder = tmp_path_factory.mktemp("world")
    async with (
        cluster(folder / "etcd", members=3) as etcd,
        world(folder / "stack", etcd, snapshot_bytes=SNAPSHOT_BYTES) as found,
    ):
        yield found


async def test_a_replica_that_is_killed(three: World) -> None:
    level = await three.home_share()
    assert level > 0.9
    three.stack.kill("homing-2")
    await three.more_turns()
    assert await three.home_share() > level - 0.05  # the others know what it picked
    await asyncio.to_thread(three.stack.start, "homing-2")
    await three.recovered(level)


async def test_a_leader_of_etcd_that_is_killed(three: World) -> None:
    level = await three.home_share()
    leader = await three.etcd.leader()
    await leader.kill()
    await three.more_turns()
    await three.recovered(level)  # two members are a quorum
    await three.etcd.start()
    await three.recovered(level)


async def test_all_of_etcd_away_for_half_a_minute(three: World) -> None:
    level = await three.home_share()
    await three.etcd.kill()
    begun = monotonic()
    await three.cut_off()
    while monotonic() - begun < 30:
        await three.more_turns()
    await three.etcd.start()
    await three.recovered(level)


async def test_a_replica_that_is_killed_while_it_writes_a_snapshot(three: World) -> None:
    level = await three.home_share()
    victim = await killed_in_a_snapshot(three)
    await three.more_turns()
    assert victim not in {one.name for one in three.running}
    successor = await three.leader()
    written = await three.metric(successor, "homing_log_snapshots_total", result="written")
    while await three.metric(successor, "homing_log_snapshots_total", result="written") <= written:
        await three.more_turns()
    await asyncio.to_thread(three.stack.start, victim)
    await three.recovered(level)


async def killed_in_a_snapshot(three: World) -> str:
    """Freeze the leader when pieces come, and kill it if the pointer is still at an earlier one."""
    root = f"/homing/{POOL}/"
    while True:
        leader = await three.leader()
        process = three.stack.processes[leader.name]
        pointer = await three.etcd.ctl("get", root + "log/snapshot", "--write-out=fields")
        while not await unfinished(three):
            await asyncio.sleep(0)
        process.signal(signal.SIGSTOP)
        now = await three.etcd.ctl("get", root + "log/snapshot", "--write-out=fields")
        if modified(now) == modified(pointer) and await unfinished(three):
            three.stack.kill(leader.name)
            return leader.name
        process.signal(signal.SIGCONT)


def modified(fields: str) -> str:
    return "".join(line for line in fields.splitlines() if '"ModRevision"' in line)


async def unfinished(three: World) -> bool:
    """Whether there are pieces of more than one snapshot."""
    prefix = f"/homing/{POOL}/snapshot/"
    keys = await three.etcd.ctl("get", prefix, "--prefix", "--keys-only")
    return len({key.removeprefix(prefix).partition("/")[0] for key in keys.split()}) > 1


async def test_a_member_of_etcd_that_hangs_for_twenty_seconds(three: World) -> None:
    level = await three.home_share()
    leader = await three.etcd.leader()
    leader.pause()
    begun = monotonic()
    while monotonic() - begun < 20:
        await three.more_turns()
    leader.resume()
    await three.recovered(level)


async def test_a_replica_that_history_left_behind(three: World) -> None:
    level = await three.home_share()
    behind = three.stack.replicas[-1]
    reloads = await three.metric(behind, "homing_log_reloads_total", reason="compacted")
    for wire in three.wires:
        await wire.cut()
    await three.more_turns(300)
    await three.etcd.compact()
    for wire in three.wires:
        await wire.mend()
    assert await three.alike() <= ALIKE_S
    assert await three.metric(behind, "homing_log_reloads_total", reason="compacted") > reloads
    await three.recovered(level)


async def test_steps_of_homings_wall_clock(three: World) -> None:
    level = await three.home_share()
    for step_s in (3600.0, -86_400.0, 0.0):
        three.stack.clock.write_text(str(step_s))
        await three.more_turns(100)
        assert await three.home_share() > level - 0.05
    await three.recovered(level)
