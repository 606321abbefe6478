"""The leader keeps the log short, and nothing gets lost by it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.index import Joined
from tests.etcd.replicas import PATIENCE_S, POOL, Replica, Turns, alike, replica, until
from tests.etcd.server import Cluster, cluster
from tests.index.chains import A, depths, held


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


async def names(etcd: Cluster, part: str) -> list[str]:
    """Keys of the pool under this part."""
    return (await etcd.ctl("get", f"/homing/{POOL}/{part}", "--prefix", "--keys-only")).split()


async def filled(one: Replica, records: int) -> None:
    """Write so many records."""
    one.append(Joined(A, 16))
    for number in range(records):
        one.append(held(A, f"{number} is a prompt"))
        await one.settled()


async def test_a_long_log_becomes_a_snapshot_that_a_new_replica_starts_from(etcd: Cluster) -> None:
    async with replica(etcd, snapshot_bytes=2000) as first:
        await filled(first, 20)
        await until(lambda: first.number("homing_log_snapshots_total", result="written"))
        await until(lambda: first.state.size.bytes < 2000)
        assert len(await names(etcd, "log/")) < 12
        assert len(await names(etcd, "snapshot/")) > 1
        await filled(first, 3)
        async with replica(etcd) as second:
            assert len(second.facts) < 15
            await alike(first, second)
            assert depths(second.index, "7 is a prompt") == {"a": 13}


async def test_one_replica_leads_and_the_next_takes_over(etcd: Cluster) -> None:
    async with replica(etcd, snapshot_bytes=2000) as first:
        await until(lambda: first.number("homing_log_leader"))
        async with replica(etcd, snapshot_bytes=2000) as second:
            await first.log.close()
            await until(lambda: second.number("homing_log_leader"))
            await filled(second, 20)
            await until(lambda: second.number("homing_log_snapshots_total", result="written"))
            assert second.number("homing_log_replicas") == 1


async def test_what_a_dead_snapshotter_left_is_deleted_and_never_read(etcd: Cluster) -> None:
    left = f"/homing/{POOL}/snapshot/{9:020d}.{7:016x}/000000"
    await etcd.ctl("put", left, "half of a snapshot")
    async with replica(etcd, snapshot_bytes=2000) as one:
        await filled(one, 20)
        await until(lambda: one.state.size.bytes < 2000)
        await until(lambda: one.number("homing_log_snapshots_total", result="written"))
        assert left not in await names(etcd, "snapshot/")


async def test_history_is_compacted_up_to_the_snapshot_before(etcd: Cluster) -> None:
    async with replica(etcd, snapshot_bytes=2000) as one:
        for _ in range(2):
            written = one.number("homing_log_snapshots_total", result="written")
            await filled(one, 20)
            await until(
                lambda before=written: (
                    one.number("homing_log_snapshots_total", result="written") > before
                )
            )
        async with asyncio.timeout(PATIENCE_S):  # it is the last thing that a snapshot does
            while "compacted" not in (await etcd.try_ctl("get", "/x", "--rev=3"))[2]:
                await asyncio.sleep(0.05)


async def test_with_compact_off_history_is_left_to_others(etcd: Cluster) -> None:
    async with replica(etcd, snapshot_bytes=2000, compact=False) as one:
        for _ in range(2):
            written = one.number("homing_log_snapshots_total", result="written")
            await filled(one, 20)
            await until(
                lambda before=written: (
                    one.number("homing_log_snapshots_total", result="written") > before
                )
            )
        assert (await etcd.try_ctl("get", "/x", "--rev=3"))[0] == 0


async def test_what_is_written_while_a_snapshot_is_taken_is_kept(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        await until(lambda: one.number("homing_log_leader"))
        one.append(Joined(A, 16))
        # Enough for a snapshot that takes longer than the next records.
        one.append(*(held(A, f"{number} {'x' * 200}") for number in range(2000)))
        for _ in range(3):
            async with Turns(one, other) as turns:
                await turns.more(5)
                await one.snapshot()
            await other.settled()
            assert other.revision > one.state.snapshot
            async with replica(etcd) as late:
                await alike(one, late)


async def test_those_that_do_not_lead_know_that_the_log_is_shorter(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        await until(lambda: one.number("homing_log_leader"))
        await filled(one, 10)
        await alike(one, other)
        assert other.state.size.bytes == one.state.size.bytes > 0
        await one.snapshot()
        await until(lambda: other.state.size.bytes == 0)
        assert other.state.snapshot == one.state.snapshot


async def test_a_leader_that_is_behind_does_not_put_an_older_snapshot_in_place(
    etcd: Cluster,
) -> None:
    """What came after it is no longer in the log."""
    async with replica(etcd) as one, replica(etcd) as behind:
        await until(lambda: one.number("homing_log_leader"))
        await filled(one, 5)
        await alike(one, behind)
        behind.stop_following()
        await filled(one, 5)
        await one.snapshot()
        pointer = await behind.get(behind.state.keys.pointer)
        await one.log.close()
        await until(lambda: behind.number("homing_log_leader"))
        await behind.snapshot()
        assert await behind.get(behind.state.keys.pointer) == pointer
        async with replica(etcd) as late:
            assert late.digest == one.digest


async def test_who_lost_the_lead_unnoticed_writes_nothing_more(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        await until(lambda: one.number("homing_log_leader"))
        await filled(one, 5)
        await etcd.ctl("del", f"/homing/{POOL}/leader")
        await etcd.ctl("put", f"/homing/{POOL}/leader", "another")
        await one.snapshot()
        assert await names(etcd, "snapshot/") == await names(etcd, "log/snapshot") == []


async def test_an_index_that_starts_over_while_it_is_saved_is_not_written(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        await until(lambda: one.number("homing_log_leader"))
        one.append(Joined(A, 16), *(held(A, f"{number} {'x' * 200}") for number in range(2000)))
        await one.settled()
        saving = asyncio.ensure_future(one.snapshot())
        await asyncio.sleep(0)
        one.state.read_anew(done=False)
        one.index.reset()
        await saving
        assert await names(etcd, "log/snapshot") == []


async def test_a_snapshot_that_etcd_has_no_room_for_is_told_and_the_log_kept(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("extproc.log.etcd.snapshotter.MAX_SNAPSHOT_BYTES", 100)
    async with replica(etcd, snapshot_bytes=2000) as one:
        await filled(one, 20)
        await until(lambda: one.number("homing_log_snapshots_total", result="failed"))
        assert "more than 100 bytes" in caplog.text
        async with replica(etcd) as late:
            await alike(one, late)
