"""A replica's lease: what it says of itself, and whether it leads, end with it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial
from time import monotonic

import grpc.aio
from etcd3aio import EtcdError
from etcd3aio.kv import KVService
from google.protobuf.message import DecodeError

from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client, Connection
from extproc.log.etcd.reading import pages
from extproc.log.etcd.retries import Backoff
from extproc.log.etcd.state import PoolState
from extproc.log.records import RECORD_VERSION
from proto_gen import factlog_pb2 as pb

logger = logging.getLogger("homing.log")

LEASE_S = 10
"""How long after its last sign of life a replica is taken for gone."""

BEAT_S = 2.5
"""Between two signs of life."""

PARTIAL_S = 60.0
"""So long a replica that could not read the snapshot waits for one that can write it anew."""

SPEAK_S = 0.2
"""Least time between two notes about one pool."""


class Seat:
    """One pool's place in the session: the note about it, and its lead.

    note: what the others are to know. led: the revision at which it took the lead; None where it
    does not lead. others: the notes of the other live replicas.
    """

    def __init__(self, state: PoolState) -> None:
        self.state = state
        self.note = pb.Replica(version=RECORD_VERSION)
        self.others: dict[int, pb.Replica] = {}
        self.changed = asyncio.Event()
        self.heard: Callable[[], None] = lambda: None
        self.led: int | None = None

    def hear(self, writer: int, note: pb.Replica | None) -> None:
        """Another replica said something, or is gone."""
        if writer == self.state.outbox.writer:
            return
        if note is None:
            self.others.pop(writer, None)
        else:
            self.others[writer] = note
        versions = [one.version for one in self.others.values() if one.version]
        self.state.version = min([RECORD_VERSION, *versions])
        self.heard()


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
        if self._lease and not await self._client.call(self._keep_alive):
            self._lease = 0
        if not self._lease:
            for seat in self.seats:
                seat.led = None
            answer = await self._client.call(
                lambda c: c.lease.grant(LEASE_S, timeout=CALL_TIMEOUT_S)
            )
            self._lease = answer.ID
            for seat in self.seats:
                seat.changed.set()
        self._granted = asked

    async def _keep_alive(self, connection: Connection) -> bool:
        stream = connection.lease.keep_alive(self._lease)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await stream.read()
        finally:
            stream.cancel()
        if answer is grpc.aio.EOF:
            raise EtcdError("the lease's stream ended")
        return bool(answer.TTL > 0)

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
        """Write the pool's note whenever it changed, until cancelled."""
        backoff = Backoff()
        while True:
            await seat.changed.wait()
            if not self._lease:
                await asyncio.sleep(SPEAK_S)
                continue
            seat.changed.clear()
            key, note, lease = seat.state.keys.replica(self._writer), seat.note, self._lease
            data = note.SerializeToString()
            try:
                await self._client.call(partial(_put, key, data, lease))
            except Away:
                seat.changed.set()
                await backoff.wait()
            else:
                backoff.reset()
                await asyncio.sleep(SPEAK_S)

    async def listen(self, seat: Seat) -> None:
        """Keep up with what the other replicas say, until cancelled."""
        backoff = Backoff()
        while True:
            try:
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
        async with (
            self._client.using() as connection,
            aclosing(connection.watch(prefix, revision + 1)) as responses,
        ):
            async for response in responses:
                for event in response.events:
                    value = event.kv.value if event.type == 0 else None
                    if (said := _read(prefix, event.kv.key, value)) is not None:
                        seat.hear(said[0], said[1] if value is not None else None)


async def _put(key: bytes, data: bytes, lease: int, connection: Connection) -> None:
    await connection.kv.put(key, data, lease=lease, timeout=CALL_TIMEOUT_S)


def _may_lead(state: PoolState) -> bool:
    """Who lacks what a snapshot had leaves the lead to those who do not, for a while."""
    return state.warm.is_set() and (state.whole or monotonic() - state.partial_since > PARTIAL_S)


def _read(prefix: bytes, key: bytes, value: bytes | None) -> tuple[int, pb.Replica] | None:
    """Who said what; None where it is nothing."""
    try:
        return int(key[len(prefix) :], 16), pb.Replica.FromString(value or b"")
    except (ValueError, DecodeError):
        return None
