"""What goes wrong with etcd, and that replicas are the same again afterwards."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from extproc.index import Joined
from tests.etcd.relay import relay
from tests.etcd.replicas import POOL, Replica, Turns, alike, replica, until
from tests.etcd.server import Cluster, cluster
from tests.index.chains import A, B, depths, held


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, members=3) as running:
        yield running


def has_facts(one: Replica, count: int) -> bool:
    return len(one.facts) == count


async def all_came_back(*replicas: Replica) -> None:
    """What every replica appended is in the index of all, which are the same."""
    for one in replicas:
        await one.settled()
    await alike(*replicas)
    assert all(one.state.outbox.dropped == 0 for one in replicas)


async def test_etcd_that_is_killed_and_comes_back(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        async with Turns(one, other) as turns:
            await turns.more()
            await etcd.kill()
            await turns.more(100)
            await etcd.start()
            await turns.more()
        await all_came_back(one, other)
        prompts = [f"{number:05d} prompt" for number in range(turns.count)]
        assert all(depths(one.index, prompt) for prompt in prompts)


async def test_a_leader_of_etcd_that_is_killed(three: Cluster) -> None:
    async with replica(three) as one, replica(three) as other:
        async with Turns(one, other) as turns:
            await turns.more()
            await (await three.leader()).kill()
            await turns.more(300)
            await three.start()
        await all_came_back(one, other)
        prompts = [f"{number:05d} prompt" for number in range(turns.count)]
        assert all(depths(other.index, prompt) for prompt in prompts)


async def test_a_member_that_is_frozen_is_left_for_another(three: Cluster) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(three)) for _ in range(3)]
        async with Turns(*replicas) as turns:
            await turns.more()
            three.members[0].pause()
            for one in replicas:
                await one.settled()
            await turns.more()
            three.members[0].resume()
        await all_came_back(*replicas)


async def test_a_watch_that_fell_silent_is_begun_anew(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sooner than a call on the same connection takes too long: nobody else has closed that."""
    monkeypatch.setattr("extproc.log.etcd.client.SIGN_S", 0.2)
    async with (
        relay(etcd.endpoints[0]) as wire,
        replica(etcd) as other,
        replica(etcd, endpoints=(wire.endpoint,)) as one,
    ):
        async with Turns(other) as turns:
            await turns.more()
            wire.stall()
            await until(lambda: one.number("homing_log_failures_total", reason="unreachable"))
            await turns.more()
            wire.flow()
        await all_came_back(one, other)


async def test_a_replica_that_was_frozen_itself_goes_on(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds that much time has passed since it heard of etcd, which is etcd's fault no more than
    that its lease is over."""
    monkeypatch.setattr("extproc.log.etcd.client.SIGN_S", 0.05)
    monkeypatch.setattr("extproc.log.etcd.session.LEASE_S", 2)
    monkeypatch.setattr("extproc.log.etcd.session.BEAT_S", 0.5)
    async with replica(etcd) as one, replica(etcd) as other:
        await until(lambda: one.number("homing_log_leader"))
        one.append(Joined(A, 16), held(A, "xyz"))
        await all_came_back(one, other)
        lease = one.log._session._lease  # type: ignore[union-attr]
        time.sleep(4)  # noqa: ASYNC251 - the whole process stands still
        one.append(held(A, "xyzuv"))
        await all_came_back(one, other)
        await until(lambda: one.log._session._lease not in (0, lease))  # type: ignore[union-attr]
        await until(lambda: one.number("homing_log_leader") + other.number("homing_log_leader"))
        await until(lambda: one.number("homing_log_replicas") == 2)
        await until(lambda: other.number("homing_log_replicas") == 2)
        assert all(not task.done() for each in (one, other) for task in each.log._tasks)


async def test_a_replica_that_history_has_left_behind_reads_the_snapshot(etcd: Cluster) -> None:
    async with (
        relay(etcd.endpoints[0]) as wire,
        replica(etcd, snapshot_bytes=2000) as one,
        replica(etcd, endpoints=(wire.endpoint,), snapshot_bytes=1 << 30) as cut,
    ):
        await until(lambda: one.number("homing_log_leader"))
        async with Turns(one, cut) as turns:
            await turns.more()
            await wire.cut()
            await turns.more(200)
            await until(lambda: one.number("homing_log_snapshots_total", result="written"))
            await etcd.compact()
            await wire.mend()
            await turns.more()
        await all_came_back(one, cut)
        assert cut.number("homing_log_reloads_total", reason="compacted") == 1
        assert one.number("homing_log_reloads_total", reason="compacted") == 0


async def test_an_etcd_that_lost_all_its_data_is_filled_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path / "old") as old, relay(old.endpoints[0]) as wire:
        there = (wire.endpoint,)
        async with (
            replica(old, endpoints=there) as one,
            replica(old, endpoints=there) as other,
            Turns(one, other) as turns,
            cluster(tmp_path / "new") as new,
        ):
            await turns.more()
            secret = one.log.secret(POOL)
            await wire.cut()
            wire.member = new.endpoints[0]
            await wire.mend()
            await until(lambda: one.number("homing_log_reloads_total", reason="another etcd"))
            one.append(Joined(A, 16), Joined(B, 16))
            await turns.more()
            await turns.stop()
            await all_came_back(one, other)
            assert one.log.secret(POOL) == other.log.secret(POOL) == secret
            assert one.facts


async def test_a_record_that_was_tampered_with_is_left_out_by_all_alike(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.append(Joined(A, 16), held(A, "xyz"))
        await one.settled()
        good = one.state.keys.record(one.state.outbox.writer, 1)
        value = await one.get(good)
        for name, what in {
            "0123456789abcdef/0000000001": "copied",
            "0123456789abcdef/0000000002": "cut",
            "not-a-record": "",
        }.items():
            data = {"copied": value, "cut": value[:-9], "": b"x"}[what]
            await one.put(f"/homing/{POOL}/log/{name}", data)
        other.append(held(A, "xyzuv"))
        await other.settled()
        await alike(one, other)
        async with replica(etcd) as late:
            await alike(one, late)
            for each in (one, other, late):
                assert each.state.fold.rejected == {"checksum": 1, "malformed": 1, "place": 1}
                assert depths(each.index, "xyzuv") == {"a": 5}


async def test_what_is_written_over_a_record_counts_for_nobody(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.append(Joined(A, 16), Joined(B, 16))
        await one.settled()
        one.append(held(A, "xyz"))
        await one.settled()
        other.append(held(B, "uv"))
        await other.settled()
        await one.put(one.state.keys.record(one.state.outbox.writer, 2).decode(), b"another")
        reason = "a record was written over"
        for each in (one, other):
            await until(partial(each.number, "homing_log_reloads_total", reason=reason))
            await until(partial(has_facts, each, 3))
        async with replica(etcd) as late:
            await alike(one, other, late)
            for each in (one, other, late):
                assert (depths(each.index, "xyz"), depths(each.index, "uv")) == ({}, {"b": 2})


async def test_what_is_written_over_no_record_leaves_replicas_alike(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        for _ in range(2):
            await one.put(f"/homing/{POOL}/log/0123456789abcdef/0000000001", b"damaged")
            one.append(Joined(A, 16), held(A, "xyz"))
            await one.settled()
        await one.put(f"/homing/{POOL}/log/0123456789abcdef/0000000001", b"damaged again")
        async with replica(etcd) as late:
            await alike(one, late)
            assert depths(late.index, "xyz") == {"a": 3}


async def test_a_log_that_takes_no_more_is_waited_for_and_bounds_the_backlog(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quota = 2 * 1024 * 1024
    async with (
        cluster(tmp_path, quota_bytes=quota) as etcd,
        replica(etcd, backlog_bytes=50_000) as one,
        replica(etcd) as other,
    ):
        one.append(Joined(A, 16), held(A, "before"))
        await one.settled()
        while (await etcd.try_ctl("put", "/filler", "x" * 100_000))[0] == 0:
            pass
        for number in range(1000):
            one.append(held(A, f"{number:04d} prompt"))
        await until(lambda: one.number("homing_log_failures_total", reason="no_space") > 1)
        assert one.number("homing_log_backlog_bytes") <= 50_000
        assert one.number("homing_log_dropped_facts") > 0
        assert depths(one.index, "before") == {"a": 6}
        said = [record for record in caplog.records if "no_space" in record.getMessage()]
        assert len(said) == 1
        await etcd.compact()
        await etcd.ctl("defrag")
        await etcd.ctl("alarm", "disarm")
        await one.settled()
        await alike(one, other)
        assert depths(other.index, "0999 prompt") == {"a": 11}
        assert depths(other.index, "0000 prompt") == {"a": 1}  # later ones begin so


async def test_a_replica_that_starts_while_etcd_takes_no_more_reads_what_there_is(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, quota_bytes=2 * 1024 * 1024) as etcd:
        async with replica(etcd) as one:
            one.append(Joined(A, 16), held(A, "before"))
            await one.settled()
        while (await etcd.try_ctl("put", "/filler", "x" * 100_000))[0] == 0:
            pass
        async with replica(etcd) as late:
            assert late.log.warm(POOL)
            assert depths(late.index, "before") == {"a": 6}


async def test_a_secret_that_is_none_is_waited_out(
    etcd: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.ctl("put", f"/homing/{POOL}/secret", "short")
    async with replica(etcd, warm_timeout_s=0.2) as one:
        assert one.log.secret(POOL) is None
        assert any("is no secret" in text for text in caplog.messages)
        await etcd.ctl("del", f"/homing/{POOL}/secret")
        await until(lambda: one.log.warm(POOL))


async def test_a_fault_of_ours_is_counted_and_the_log_read_anew(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.append(Joined(A, 16), held(A, "xyz"))
        await one.settled()
        await alike(one, other)
        with monkeypatch.context() as broken:
            broken.setattr(other.index, "apply", None)
            one.append(held(A, "uvw"))
            errors = other.metrics.errors.labels("log")
            await until(lambda: errors._value.get())
        await until(lambda: depths(other.index, "uvw") == {"a": 3})
        await alike(one, other)
