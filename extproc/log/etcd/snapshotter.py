"""The leader's work: snapshots, and deleting what they have.

    pieces ─▶ the pointer, in one transaction with the lead ─▶ the log up to it, older snapshots,
    etcd's history

A leader that dies anywhere in between leaves garbage that the next one deletes. One that lost the
lead unnoticed writes nothing any more: every write checks the lead.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from time import monotonic

from etcd3aio._protobuf import Compare, RequestOp, TxnResponse
from etcd3aio.kv import KVService

from extproc.config import EtcdLog
from extproc.errors import HomingError
from extproc.log.etcd.client import Away, Client
from extproc.log.etcd.pointers import point, read_pointer
from extproc.log.etcd.reading import pages
from extproc.log.etcd.session import Seat, Session
from extproc.log.etcd.state import PoolMetrics, PoolState
from extproc.log.records import BadRecord

logger = logging.getLogger("homing.log")

LOOK_S = 1.0
"""How often it is looked whether a snapshot is due."""

WRITE_TIMEOUT_S = 10.0

DELETED_AT_ONCE = 512
"""Records of one deletion: etcd does nothing else meanwhile."""

PAUSE_S = 0.005
"""Between two of them."""


FAILED_S = 10.0
"""How long after one that failed the next is tried."""

MAX_SNAPSHOT_BYTES = 512 * 1024 * 1024
"""Two of them and their history fit etcd's default quota of 2 GiB."""


class LostLead(Exception):
    """Another replica leads."""


class TooLarge(Exception):
    """The index makes a larger snapshot than etcd has room for."""


class Snapshotter:
    """Writes one pool's snapshots while this replica leads."""

    def __init__(
        self,
        client: Client,
        session: Session,
        seat: Seat,
        settings: EtcdLog,
        metrics: PoolMetrics,
    ) -> None:
        self._client = client
        self._session = session
        self._seat = seat
        self._settings = settings
        self._metrics = metrics
        self._last = monotonic()
        self._not_before = float("-inf")

    @property
    def _state(self) -> PoolState:
        return self._seat.state

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._session.leads(self._seat):
                self._last = monotonic()
                continue
            if self._due():
                await self._try()

    def _due(self) -> bool:
        state, now = self._state, monotonic()
        if state.snapshots is None or not state.epoch or now < self._not_before:
            return False
        late = state.size.bytes > 0 and now - self._last >= self._settings.snapshot_s
        return state.size.due or late

    async def _try(self) -> None:
        try:
            await self.snapshot()
        except (Away, LostLead, TooLarge) as error:
            self._metrics.snapshot("failed")
            logger.warning("pool %s: snapshot: %s", self._state.keys.pool, error)
            self._not_before = monotonic() + FAILED_S
            if isinstance(error, LostLead):
                self._seat.led = None
        self._last = monotonic()

    async def snapshot(self) -> None:
        """Write one now, and delete what it makes needless; nothing where it is not the time.

        Raises Away, LostLead and TooLarge; what was not deleted is by the next one.
        """
        state, mine = self._state, self._state.outbox.writer
        started, epoch = monotonic(), state.epoch
        revision, writers, pieces = await self._take()
        before, version = await self._before()
        if not pieces or revision <= before or not epoch:
            return  # or this replica is behind the one that led before
        for number, piece in enumerate(pieces):
            await self._led([KVService.txn_op_put(state.keys.piece(revision, mine, number), piece)])
        pointer = await asyncio.to_thread(point, revision, mine, writers, pieces, state.signer)
        if state.epoch != epoch:
            return  # it may be of another etcd, whose revisions mean nothing here
        await self._led(
            [KVService.txn_op_put(state.keys.pointer, pointer)],
            KVService.txn_compare_version(state.keys.pointer, version),
        )
        state.snapshot = revision
        state.size.cut(revision)
        self._metrics.snapshot("written")
        logger.info(
            "pool %s: wrote a snapshot of %d bytes at revision %d in %.2f s",
            *(state.keys.pool, sum(map(len, pieces)), revision, monotonic() - started),
        )
        await self._delete_snapshots(keep=state.keys.snapshot(revision, mine))
        await self._trim(revision)
        if self._settings.compact and before:
            await self._compact(before)

    async def _take(self) -> tuple[int, "OrderedDict[int, int]", list[bytes]]:
        """The pieces, and how far the log was read in them; none where it is not the time."""
        state = self._state
        pieces: list[bytes] = []
        size, revision, writers = 0, 0, OrderedDict[int, int]()
        try:
            for piece in state.snapshots.save() if state.snapshots is not None else ():
                if piece:
                    if not pieces:
                        revision, writers = state.fold.revision, state.fold.writers.copy()
                    pieces.append(piece)
                    size += len(piece)
                if size > MAX_SNAPSHOT_BYTES:
                    raise TooLarge(f"more than {MAX_SNAPSHOT_BYTES} bytes; see pools[].index_bytes")
                await asyncio.sleep(0)
        except (ValueError, HomingError):
            # Somebody else takes one, or the log started over under it: next time.
            pieces.clear()
        return revision, writers, pieces

    async def _before(self) -> tuple[int, int]:
        """The revision that the pointer has (0: there is no good one), and its key's version."""
        state = self._state
        answer = await self._client.call(
            lambda c: c.kv.get(state.keys.pointer, timeout=WRITE_TIMEOUT_S)
        )
        if not answer.kvs:
            return 0, 0
        try:
            revision = read_pointer(answer.kvs[0].value, state.signer).revision
        except BadRecord:
            revision = 0
        return revision, answer.kvs[0].version

    async def _led(self, operations: Sequence[RequestOp], *further: Compare) -> None:
        """Do this only while this replica leads."""
        led = self._seat.led
        if led is None:
            raise LostLead("another replica leads")
        lead = KVService.txn_compare_create_revision(self._state.keys.leader, led)
        answer: TxnResponse = await self._client.call(
            lambda c: c.kv.txn([lead, *further], operations, timeout=WRITE_TIMEOUT_S)
        )
        if not answer.succeeded:
            raise LostLead("another replica leads")

    async def _delete_snapshots(self, keep: bytes) -> None:
        """All pieces but those of this snapshot, also those of one that was never finished."""
        prefix = self._state.keys.snapshots
        async for page in pages(self._client, prefix, 0, keys_only=True):
            for kv in page:
                if not kv.key.startswith(keep):
                    await self._led([KVService.txn_op_delete(kv.key)])

    async def _trim(self, revision: int) -> None:
        """Delete the records that are in the snapshot of this revision."""
        state = self._state
        async for page in pages(self._client, state.keys.log, 0, keys_only=True):
            covered = [
                kv.key
                for kv in page
                if kv.create_revision <= revision and kv.key != state.keys.pointer
            ]
            for start in range(0, len(covered), DELETED_AT_ONCE):
                part = covered[start : start + DELETED_AT_ONCE]
                await self._delete_run(part)
                await asyncio.sleep(PAUSE_S)

    async def _delete_run(self, keys: list[bytes]) -> None:
        """Delete keys that follow each other, a range for each writer: in its order of seq, what a
        snapshot has comes before what it has not."""
        first = last = keys[0]
        runs = []
        for key in keys[1:]:
            if key[:-10] != last[:-10]:
                runs.append((first, last))
                first = key
            last = key
        runs.append((first, last))
        await self._led(
            [KVService.txn_op_delete(first, range_end=last + b"\0") for first, last in runs]
        )

    async def _compact(self, revision: int) -> None:
        """Delete history that no replica needs: who is further behind reads the snapshot."""
        try:
            await self._client.call(lambda c: c.kv.compact(revision, timeout=WRITE_TIMEOUT_S))
        except Away as away:
            if away.reason != "compacted":
                raise
