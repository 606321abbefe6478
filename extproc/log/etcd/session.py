"""A replica's lease: what it says of itself, and whether it leads, end with it."""

import asyncio
import logging
from contextlib import aclosing, suppress
from functools import partial
from itertools import islice
from time import monotonic

from etcd3aio.kv import KVService
from google.protobuf.message import DecodeError

from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client, Connection
from extproc.log.etcd.reading import pages
from extproc.log.etcd.retries import Backoff
from extproc.log.etcd.state import PoolState
from extproc.log.interface import LoadParty
from extproc.log.records import RECORD_VERSION
from extproc.terms import InstanceId
from proto_gen import factlog_pb2 as pb

logger = logging.getLogger("homing.log")

LEASE_S = 10
"""How long after its last sign of life a replica is taken for gone."""

BEAT_S = 2.5
"""Between two signs of life."""

GRACE_S = 15.0
"""So long no live replica must have listed an instance before it counts as gone: a lease, and the
time in which one that begins says what it lists."""

PARTIAL_S = 60.0
"""So long a replica that could not read the snapshot waits for one that can write it anew."""

SPEAK_S = 0.2
"""Least time between two notes about one pool."""

MOST_TOLD = 4096
"""Instances of one note; those beyond are left out."""


class Seat:
    """One pool's place in the session: what is told about it, and its lead.

    party: whose load the others are told, and who is told theirs; None for nobody. led: the
    revision at which it took the lead; None where it does not lead. others: the newest record
    version that each of the other live replicas reads.
    """

    def __init__(self, state: PoolState) -> None:
        self.state = state
        self.others: dict[int, int] = {}
        self._listed: dict[int, frozenset[str] | None] = {}
        self.party: LoadParty | None = None
        self.led: int | None = None

    @property
    def changes(self) -> int:
        """Another number when there is something new to tell."""
        return self.party.changes if self.party is not None else 0

    def note(self) -> pb.Replica:
        """What the others are to know now."""
        note = pb.Replica(version=RECORD_VERSION)
        if self.party is not None:
            for name, (waiting, requests) in self.party.own().items():
                note.instances.add(
                    instance=name, requests=requests, waiting_tokens=max(round(waiting), 0)
                )
            note.picks, note.prefill_ms = self.party.assigned()
            listed = self.party.listed()
            if listed is not None and len(listed) <= MOST_TOLD:
                note.listing.instances.extend(listed)
                note.listing.SetInParent()  # an empty list is one, too
            note.seen.extend(islice(self.party.seen(), MOST_TOLD))
        return note

    def hear(self, writer: int, note: pb.Replica | None) -> None:
        """Another replica said something, or is gone."""
        if writer == self.state.outbox.writer:
            return
        if note is None:
            self.others.pop(writer, None)
            self._listed.pop(writer, None)
        else:
            self.others[writer] = note.version
            listing = note.listing.instances if note.HasField("listing") else None
            self._listed[writer] = None if listing is None else frozenset(listing)
        self.state.version = min([RECORD_VERSION, *filter(None, self.others.values())])
        if self.party is not None:
            replica = f"{writer:016x}"
            if note is None:
                self.party.report(replica, None, (0, 0))
                return
            self.party.report(replica, _loads(note), (note.picks, note.prefill_ms))
            if note.seen:
                self.party.told(note.seen[:MOST_TOLD])

    def lacks(self, instance: InstanceId) -> bool:
        """Whether all other live replicas have said what they list, and none lists this one."""
        return self.state.others_known.is_set() and all(
            listed is not None and instance not in listed for listed in self._listed.values()
        )

    def reached(self) -> None:
        """Who said nothing has nothing new to say."""
        if self.party is not None:
            self.party.heard()


class Session:
    """The lease of one process, for all its pools."""

    def __init__(self, client: Client, writer: int) -> None:
        self._client = client
        self._writer = writer
        self._lease = 0
        self._granted = float("-inf")
        self.seats: list[Seat] = []

    @property
    def alive(self) -> bool:
        """Whether the lease holds for sure."""
        return bool(self._lease) and monotonic() - self._granted < LEASE_S

    def leads(self, seat: Seat) -> bool:
        """Whether this replica writes the pool's snapshots now."""
        return seat.led is not None and self.alive

    async def run(self) -> None:
        """Keep the lease until it is cancelled; ask for a new one when it was lost."""
        backoff = Backoff()
        while True:
            try:
                await self._beat()
            except Away:
                await backoff.wait()
            else:
                backoff.reset()
                await asyncio.sleep(BEAT_S)

    async def end(self) -> None:
        """Give everything back at once."""
        if self._lease:
            lease, self._lease = self._lease, 0
            await self._client.call(lambda c: c.lease.revoke(lease, timeout=CALL_TIMEOUT_S))

    async def _beat(self) -> None:
        asked = monotonic()
        if self._lease and not await self._client.call(lambda c: c.keep_alive(self._lease)):
            self._lease = 0
        if not self._lease:
            for seat in self.seats:
                seat.led = None
            answer = await self._client.call(
                lambda c: c.lease.grant(LEASE_S, timeout=CALL_TIMEOUT_S)
            )
            self._lease = answer.ID
        self._granted = asked

    async def lead(self, seat: Seat) -> None:
        """Take the pool's lead whenever nobody has it, until cancelled."""
        await seat.state.warm.wait()
        while True:
            if self.alive and seat.led is None and _may_lead(seat.state):
                with suppress(Away):
                    await self._campaign(seat)
            await asyncio.sleep(BEAT_S if self.alive else SPEAK_S)

    async def _campaign(self, seat: Seat) -> None:
        """Take the lead, if nobody has it."""
        key = seat.state.keys.leader
        lease = self._lease
        answer = await self._client.call(
            lambda c: c.kv.txn(
                [KVService.txn_compare_create_revision(key, 0)],
                [KVService.txn_op_put(key, b"%016x" % self._writer, lease=lease)],
                [KVService.txn_op_get(key)],
                timeout=CALL_TIMEOUT_S,
            )
        )
        if answer.succeeded:
            seat.led = answer.header.revision
            logger.info("pool %s: leads, and writes its snapshots", seat.state.keys.pool)
            return
        held = answer.responses[0].response_range.kvs
        # An answer that was lost: the lead is ours, with this lease.
        if held and held[0].value == b"%016x" % self._writer and held[0].lease == lease:
            seat.led = held[0].create_revision

    async def speak(self, seat: Seat) -> None:
        """Write what is to be told about the pool whenever it changed, until cancelled."""
        backoff = Backoff()
        told: tuple[int, int] | None = None
        while True:
            lease, changes = self._lease, seat.changes
            if lease and (lease, changes) != told:
                key, data = seat.state.keys.replica(self._writer), seat.note().SerializeToString()
                try:
                    await self._client.call(partial(_put, key, data, lease))
                except Away:
                    await backoff.wait()
                else:
                    backoff.reset()
                    told = lease, changes
            await asyncio.sleep(SPEAK_S)

    async def listen(self, seat: Seat) -> None:
        """Keep up with what the other replicas say, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                async with backoff.lasting():
                    await self._listen(seat)
            except Away:
                await backoff.wait()

    async def _listen(self, seat: Seat) -> None:
        prefix = seat.state.keys.live
        revision = 0
        found: dict[int, pb.Replica] = {}
        answer = await self._client.call(
            lambda c: c.kv.get(seat.state.keys.secret, timeout=CALL_TIMEOUT_S)
        )
        revision = answer.header.revision
        async for page in pages(self._client, prefix, revision):
            for kv in page:
                if (said := _read(prefix, kv.key, kv.value)) is not None:
                    found[said[0]] = said[1]
        for gone in seat.others.keys() - found.keys():
            seat.hear(gone, None)
        for writer, note in found.items():
            seat.hear(writer, note)
        seat.state.others_known.set()
        seat.reached()
        async with (
            self._client.using() as connection,
            aclosing(connection.watch(prefix, revision + 1)) as responses,
        ):
            async for response in responses:
                for event in response.events:
                    value = event.kv.value if event.type == 0 else None
                    if (said := _read(prefix, event.kv.key, value)) is not None:
                        seat.hear(said[0], said[1] if value is not None else None)
                seat.reached()


async def _put(key: bytes, data: bytes, lease: int, connection: Connection) -> None:
    await connection.kv.put(key, data, lease=lease, timeout=CALL_TIMEOUT_S)


def _may_lead(state: PoolState) -> bool:
    """Who lacks what a snapshot had leaves the lead to those who do not, for a while."""
    return state.warm.is_set() and (state.whole or monotonic() - state.partial_since > PARTIAL_S)


def _loads(note: pb.Replica) -> dict[InstanceId, tuple[float, int]]:
    told = note.instances[:MOST_TOLD]
    return {InstanceId(one.instance): (float(one.waiting_tokens), one.requests) for one in told}


def _read(prefix: bytes, key: bytes, value: bytes | None) -> tuple[int, pb.Replica] | None:
    """Who said what; None where it is nothing."""
    try:
        return int(key[len(prefix) :], 16), pb.Replica.FromString(value or b"")
    except (ValueError, DecodeError):
        return None
