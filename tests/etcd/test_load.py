"""What replicas have in flight, told through leased keys of a real etcd."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import pytest

from extproc.engines import Members
from extproc.log.etcd.session import MOST_TOLD, SPEAK_S
from extproc.log.interface import LoadParty
from extproc.routing import LoadLedger, Outlook, Speed
from extproc.serve.shared_load import SharedLoad
from extproc.terms import InstanceId
from proto_gen import factlog_pb2 as pb
from tests.etcd.replicas import POOL, Replica, replica, until
from tests.etcd.server import Cluster, cluster

A, B = InstanceId("a"), InstanceId("b")
NO_RATE = 0.0
"""Nothing is prefilled meanwhile, so counts stay what they are."""


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path / "etcd") as up:
        yield up


def ledger_of(one: Replica) -> LoadLedger:
    """The replica's ledger, in the exchange from here on."""
    ledger = LoadLedger()
    one.log.share(POOL, shared(ledger))
    return ledger


def start(ledger: LoadLedger, instance: InstanceId, tokens: float):
    return ledger.start(instance, tokens, monotonic(), NO_RATE)


def seen(
    ledger: LoadLedger, instance: InstanceId, waiting: float, requests: int
) -> Callable[[], bool]:
    return lambda: ledger.of(instance, monotonic(), NO_RATE) == (waiting, requests)


async def test_every_replica_sees_the_sum(etcd: Cluster) -> None:
    async with replica(etcd) as one, replica(etcd) as other, replica(etcd) as third:
        ledgers = [ledger_of(each) for each in (one, other, third)]
        first = start(ledgers[0], A, 300)
        start(ledgers[1], A, 50)
        start(ledgers[2], B, 7)
        for ledger in ledgers:
            await until(seen(ledger, A, 350, 2))
            await until(seen(ledger, B, 7, 1))
        ledgers[0].end(first)
        for ledger in ledgers:
            await until(seen(ledger, A, 50, 1))


async def test_one_that_comes_later_is_told_what_is_in_flight_already(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        start(ledger_of(one), A, 300)
        late = Replica(etcd)
        ledger = ledger_of(late)
        await late.log.open()
        try:
            await until(seen(ledger, A, 300, 1))
        finally:
            await late.log.close()


async def test_a_replicas_load_ends_with_its_lease_and_is_told_again_with_a_new_one(
    etcd: Cluster,
) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        ledger = ledger_of(other)
        start(ledger_of(one), A, 300)
        await until(seen(ledger, A, 300, 1))
        told: list[int] = []
        other.log.share(POOL, Watching(shared(ledger), told))
        for lease in (await etcd.ctl("lease", "list")).split()[3:]:
            await etcd.ctl("lease", "revoke", lease)
        await until(lambda: told[:1] == [0])
        await until(seen(ledger, A, 300, 1))


async def test_a_replica_that_ends_takes_its_load_along_at_once(etcd: Cluster) -> None:
    async with replica(etcd) as other:
        ledger = ledger_of(other)
        async with replica(etcd) as one:
            start(ledger_of(one), A, 300)
            await until(seen(ledger, A, 300, 1))
        await until(seen(ledger, A, 0, 0))


async def test_what_does_not_change_is_not_told_again_and_changes_not_too_often(
    etcd: Cluster,
) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        ledger = ledger_of(one)
        told: list[int] = []
        party = Watching(shared(LoadLedger()), told)
        other.log.share(POOL, party)
        begun = monotonic()
        for _ in range(60):
            start(ledger, A, 1)
            await asyncio.sleep(0.01)
        await until(lambda: told[-1:] == [60])
        spent = monotonic() - begun
        assert told == sorted(set(told))
        assert len(told) <= spent / SPEAK_S + 2
        heard, count = party.heard_count, len(told)
        await until(lambda: party.heard_count > heard)  # a sign of life, without anything new
        assert len(told) == count


async def test_a_note_that_makes_no_sense_is_no_load(etcd: Cluster) -> None:
    async with replica(etcd) as one:
        ledger = ledger_of(one)
        live = one.state.keys.live.decode()
        await etcd.ctl("put", live + "nobody", "garbage")
        await etcd.ctl("put", live + "00000000000000aa", "\x01\x02garbage")
        await etcd.ctl("put", live + "00000000000000bb", "")
        async with replica(etcd) as other:
            start(ledger_of(other), B, 5)
            await until(seen(ledger, B, 5, 1))
        assert ledger.elsewhere(monotonic()) <= 1


def test_a_note_has_a_bound() -> None:
    from extproc.log.etcd.session import _loads

    note = pb.Replica()
    for number in range(MOST_TOLD + 10):
        note.instances.add(instance=f"{number}", requests=1)
    assert len(_loads(note)) == MOST_TOLD


def shared(ledger: LoadLedger) -> SharedLoad:
    """Of a pool without engines."""
    outlook = Outlook(Speed(NO_RATE), 0.0)
    outlook.ledger = ledger
    return SharedLoad(outlook, Members(), lambda _: True)


class Watching:
    """A party that notes how many requests each report has."""

    def __init__(self, party: LoadParty, told: list[int]) -> None:
        self._party = party
        self._told = told
        self.heard_count = 0

    @property
    def changes(self) -> int:
        return self._party.changes

    def own(self):
        return self._party.own()

    def assigned(self):
        return self._party.assigned()

    def report(self, replica: str, loads, assigned) -> None:
        self._told.append(sum(requests for _, requests in (loads or {}).values()))
        self._party.report(replica, loads, assigned)

    def heard(self) -> None:
        self.heard_count += 1
        self._party.heard()

    def listed(self):
        return self._party.listed()

    def seen(self):
        return self._party.seen()

    def told(self, seen) -> None:
        self._party.told(seen)
