"""The log in etcd keeps the promises of `extproc/log/interface.py`, and its bounds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.config import EtcdLog as Settings
from extproc.index import Fact, Joined, Left
from extproc.log import FactLog, LogClosedError
from extproc.log.etcd import EtcdLog
from extproc.log.etcd.session import Seat, Session
from extproc.log.etcd.size import FULL
from extproc.telemetry import Metrics
from tests.etcd.replicas import POOL, alike, replica, until
from tests.etcd.server import Cluster, cluster
from tests.index.chains import A, B, depths, held


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


class Notes:
    """A subscriber that writes down what it is given."""

    def __init__(self, log: FactLog, pool: str) -> None:
        self.facts: list[tuple[int, Fact]] = []
        log.subscribe(pool, lambda revision, fact: self.facts.append((revision, fact)), self._again)

    def _again(self) -> None:
        self.facts.clear()


def a_log(etcd: Cluster) -> EtcdLog:
    return EtcdLog(Settings(kind="etcd", endpoints=tuple(etcd.endpoints)), Metrics())


async def test_pools_do_not_see_each_others_facts_and_revisions_rise(etcd: Cluster) -> None:
    log = a_log(etcd)
    here, there, second = Notes(log, "p"), Notes(log, "q"), Notes(log, "p")
    await log.open()
    assert (log.revision("p"), log.settled("p")) == (0, 0)
    first = log.append("p", [Joined(A, 16), Joined(B, 16)])
    log.append("q", [Joined(A, 16)])
    await until(lambda: log.settled("p") == first)
    last = log.append("p", [Left(A)])
    await until(lambda: log.settled("p") == last and len(there.facts) == 1)
    assert [fact for _, fact in here.facts] == [Joined(A, 16), Joined(B, 16), Left(A)]
    assert second.facts == here.facts
    revisions = [revision for revision, _ in here.facts]
    assert revisions[0] == revisions[1] < revisions[2] == log.revision("p")
    assert log.secret("p") != log.secret("q")
    await log.close()
    await log.close()
    with pytest.raises(LogClosedError):
        log.append("p", [Left(A)])


async def test_a_pool_that_comes_later_is_read_at_once(etcd: Cluster) -> None:
    log, late = a_log(etcd), a_log(etcd)
    Notes(log, "p")
    await log.open()
    await late.open()
    ticket = log.append("p", [Joined(A, 16)])
    await until(lambda: log.settled("p") == ticket)
    notes = Notes(late, "p")
    await until(lambda: late.warm("p"))
    assert [fact for _, fact in notes.facts] == [Joined(A, 16)]
    with pytest.raises(ValueError, match="before open"):
        Notes(late, "p")
    with pytest.raises(ValueError, match="reload"):
        late.subscribe("q", lambda _, __: None)
    await log.close()
    await late.close()


async def test_what_waits_is_written_before_the_end(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        one.append(Joined(A, 16))
        await one.settled()
        one.append(*(held(A, f"{number} prompt") for number in range(2000)))
    async with replica(etcd) as other:
        assert depths(other.index, "1999 prompt") == {"a": 11}


async def test_a_log_that_no_snapshot_shortens_is_bounded(
    etcd: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = 2000
    async with replica(etcd, snapshot_bytes=wanted, backlog_bytes=10_000) as one:
        one.state.snapshots = None  # as where none can be written
        one.append(Joined(A, 16))
        await until(lambda: one.log.settled(POOL) > 0)
        for number in range(1000):
            one.append(held(A, f"{number:04d} prompt"))
            if number % 20 == 0:
                await until(lambda: one.state.outbox.idle or one.state.size.full)
        await until(lambda: one.state.size.full)
        await until(lambda: "nothing is written until" in caplog.text)
        assert one.state.size.bytes <= (FULL + 1) * wanted + 20 * 200
        assert one.number("homing_log_dropped_facts") > 0
        assert one.number("homing_log_backlog_bytes") <= 10_000
        one.state.snapshots = one.snapshots
        await until(lambda: not one.state.size.full)
        await one.settled()
        assert depths(one.index, "0999 prompt") == {"a": 11}


async def test_a_damaged_snapshot_is_written_anew_by_a_replica_that_has_all(
    etcd: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(etcd, snapshot_bytes=1 << 30) as one:
        await until(lambda: one.number("homing_log_leader"))
        one.append(Joined(A, 16), held(A, "xyz"))
        await one.settled()
        await one.snapshot()
        piece = one.state.keys.piece(one.state.snapshot, one.state.outbox.writer, 0)
        await one.put(piece.decode(), b"damaged")
        async with replica(etcd, snapshot_bytes=1 << 30) as other:
            assert not depths(other.index, "xyz")
            assert other.number("homing_log_snapshots_total", result="refused") == 1
            assert any("snapshot not used" in text for text in caplog.messages)
            one.append(held(A, "uvw"))
            await one.settled()
            await one.snapshot()
            await until(lambda: depths(other.index, "xyz"))
            await alike(one, other)


async def test_records_are_written_in_the_oldest_version_that_a_live_replica_reads(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(etcd) as one:
        seat = one.log.seat(POOL)
        async with replica(etcd):
            await until(lambda: len(seat.others) == 1)
            monkeypatch.setattr("extproc.log.etcd.session.RECORD_VERSION", 3)
            # A replica of version 2 says so; the other one of version 1 is still there.
            await one.put(f"/homing/{POOL}/live/{7:016x}", b"\x08\x02")
            await until(lambda: len(seat.others) == 2)
            assert one.state.version == 1
        await until(lambda: len(seat.others) == 1)
        assert one.state.version == 2
        await etcd.ctl("del", f"/homing/{POOL}/live/{7:016x}")
        await until(lambda: not seat.others)
        assert one.state.version == 3


async def test_nothing_is_written_before_the_other_replicas_are_known(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide the version that it is written in."""

    async def deaf(session: Session, seat: Seat) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Session, "listen", deaf)
    async with replica(etcd) as one:
        one.append(Joined(A, 16))
        for _ in range(20):
            await one.get(one.state.keys.secret)
        assert one.number("homing_log_puts_total") == 0
        one.state.others_known.set()
        await one.settled()
