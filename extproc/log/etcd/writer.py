"""Writes a replica's own facts to the log, a record at a time, until etcd has it."""

import asyncio
import logging
from time import monotonic

from etcd3aio.kv import KVService

from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client
from extproc.log.etcd.outbox import Batch
from extproc.log.etcd.retries import Backoff
from extproc.log.etcd.state import PoolMetrics, PoolState

logger = logging.getLogger("homing.log")

GATHER_S = 0.025
"""Facts are gathered so long: at most 40 records a second."""


FULL_S = 0.5
"""How often it is looked whether there is room again."""


class Writer:
    """Appends for one pool."""

    def __init__(self, client: Client, state: PoolState, metrics: PoolMetrics) -> None:
        self._client = client
        self._state = state
        self._metrics = metrics
        self._last = float("-inf")

    async def run(self) -> None:
        """Until it is cancelled."""
        state = self._state
        await state.secret_known.wait()
        await state.others_known.wait()  # they decide the version to write
        while True:
            state.appended.clear()
            while not state.outbox.idle:
                await self._gather()
                batch = state.outbox.next(state.signer, state.version)
                if batch is not None:
                    await self._put(batch)
            await state.appended.wait()

    async def _gather(self) -> None:
        """Wait until the next record is due, and has room in the log."""
        if not self._state.outbox.full:
            await asyncio.sleep(self._last + GATHER_S - monotonic())
        size, outbox = self._state.size, self._state.outbox
        if size.full:
            logger.error(
                "pool %s: %d bytes of log after the last snapshot: nothing is written until there"
                " is a new one",
                *(self._state.keys.pool, size.bytes),
            )
        while size.full or outbox.ahead:  # noqa: ASYNC110 - seldom, and nobody tells
            await asyncio.sleep(FULL_S)
        self._last = monotonic()

    async def _put(self, batch: Batch) -> None:
        """Write it. A key that is there already has it: an answer was lost."""
        state = self._state
        key = state.keys.record(state.outbox.writer, batch.seq)
        compare = [KVService.txn_compare_create_revision(key, 0)]
        put = [KVService.txn_op_put(key, batch.value)]
        backoff = Backoff()
        while True:
            try:
                await self._client.call(
                    lambda connection: connection.kv.txn(compare, put, timeout=CALL_TIMEOUT_S)
                )
            except Away as away:
                self._metrics.failed(away.reason)
                if away.reason == "too_large":
                    state.outbox.refused(batch)
                    return
                await backoff.wait()
                continue
            self._metrics.puts.inc()
            self._metrics.put_bytes.inc(len(key) + len(batch.value))
            state.outbox.written(batch)
            return
