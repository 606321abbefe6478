"""Reads a pool's log: what is there, then what comes, in one order for all replicas.

secret ─▶ snapshot ─▶ the log after it, by create revision ─▶ watch from the revision read + 1
   ▲                                                              │ compacted, another cluster
   └──────────────────────────────────────────────────────────────┘
"""

import asyncio
import logging
from array import array
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from etcd3aio.kv import KVService

from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client, Connection
from extproc.log.etcd.pointers import Pointer, read_pointer, whole
from extproc.log.etcd.reading import pages
from extproc.log.etcd.retries import Backoff
from extproc.log.etcd.state import SECRET_BYTES, PoolMetrics, PoolState
from extproc.log.interface import BadSnapshot
from extproc.log.records import BadRecord

logger = logging.getLogger("homing.log")

SLICE_S = 0.002
"""So long facts are folded before the event loop does something else."""


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Which etcd it is, and how far it was at a linearizable read."""

    id: int
    revision: int


class StartOver(Exception):
    """The log is to be read from its start; the message says why."""


class Follower:
    """Keeps one pool's subscribers up with the log."""

    def __init__(self, client: Client, state: PoolState, metrics: PoolMetrics) -> None:
        self._client = client
        self._state = state
        self._metrics = metrics
        self._cluster: int | None = None
        self._read_to = 0
        self._breath = perf_counter()

    async def run(self) -> None:
        """Until it is cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self._catch_up()
                async with backoff.lasting():
                    await self._watch()
            except StartOver as why:
                self._start_over(str(why))
            except Away as away:
                if away.reason == "compacted":
                    self._start_over("compacted")
                else:
                    self._metrics.failed(away.reason)
            await backoff.wait()

    def _start_over(self, why: str) -> None:
        """Load everything again; the subscribers keep what they have until then."""
        self._cluster = None
        self._state.read_anew(done=False)
        self._metrics.reloaded(why)
        logger.warning("pool %s: reads its log from the start: %s", self._state.keys.pool, why)

    async def _catch_up(self) -> None:
        """Be somewhere that a watch can go on from."""
        acknowledged = self._state.outbox.acknowledged
        found = await self._look()
        if self._cluster is not None and (
            found.id != self._cluster or found.revision < self._read_to
        ):
            self._start_over("another etcd")
        if self._cluster is None:
            await self._load(found)
            # Etcd had them before it was read: those that are not there now never will be.
            self._state.outbox.returned(acknowledged)

    async def _look(self) -> _Cluster:
        """Read the secret, or write one. Linearizable: what it sees is up to date."""
        state = self._state
        read = partial(_secret, state.keys.secret, state.offered_secret)
        secret, cluster = await self._client.call(read)
        if secret != state.secret:
            if state.secret is not None:
                self._start_over("another secret")
            state.take_secret(secret)
        return cluster

    async def _load(self, at: _Cluster) -> None:
        """Everything that there is at this revision."""
        state = self._state
        started = monotonic()
        pointer, snapshot = await self._read_snapshot(at.revision)
        records: list[Any] = []
        revisions = array("q")
        async for page in pages(self._client, state.keys.log, at.revision):
            records += page
            revisions.extend(kv.create_revision for kv in page)
        # In a thread, and numpy lets others go on: there may be a million.
        order = await asyncio.to_thread(np.argsort, revisions, kind="stable")
        # Nothing was changed so far: a failure up to here leaves the old state.
        state.whole = await self._take_snapshot(pointer, snapshot)
        if not state.whole:
            state.partial_since = monotonic()
        start = pointer.revision if pointer is not None else 0
        state.fold.start(start, pointer.writers if pointer is not None else None)
        state.snapshot = start
        state.size.clear()
        for number in order:
            kv = records[number]
            if revisions[number] > start and kv.key != state.keys.pointer:
                await self._record(kv)
        self._read_to = at.revision
        self._cluster = at.id
        state.read_anew(done=True)
        state.warm.set()
        logger.info(
            "pool %s: read a snapshot of %d bytes and %d records up to revision %d in %.2f s",
            *(state.keys.pool, sum(map(len, snapshot)), len(records)),
            *(at.revision, monotonic() - started),
        )

    async def _read_snapshot(self, revision: int) -> tuple[Pointer | None, list[bytes]]:
        """The pointer and the pieces that it points to; None where there is no good one."""
        state = self._state
        answer = await self._client.call(
            lambda connection: connection.kv.get(
                state.keys.pointer, revision=revision, timeout=CALL_TIMEOUT_S
            )
        )
        state.whole = not answer.kvs
        if not answer.kvs:
            return None, []
        try:
            pointer = read_pointer(answer.kvs[0].value, state.signer)
        except BadRecord as bad:
            self._bad_snapshot(f"pointer: {bad.reason}")
            return None, []
        prefix = state.keys.snapshot(pointer.revision, pointer.writer)
        pieces = [
            bytes(kv.value) async for page in pages(self._client, prefix, revision) for kv in page
        ]
        # In a thread: a second for a gigabyte, and hashing lets others go on.
        if not await asyncio.to_thread(whole, pointer, pieces, state.signer):
            self._bad_snapshot("pieces are missing or damaged")
            return None, []
        return pointer, pieces

    async def _take_snapshot(self, pointer: Pointer | None, pieces: list[bytes]) -> bool:
        """Let the subscribers start from it; whether they have all that it says there is."""
        state = self._state
        if pointer is not None and state.snapshots is not None:
            try:
                for _ in state.snapshots.load(pieces):
                    await asyncio.sleep(0)
            except BadSnapshot as bad:
                self._bad_snapshot(str(bad))
            else:
                return True
        state.forget()
        return pointer is None and state.whole

    def _bad_snapshot(self, what: str) -> None:
        self._metrics.snapshot("refused")
        logger.error("pool %s: snapshot not used: %s", self._state.keys.pool, what)

    async def _watch(self) -> None:
        state = self._state
        async with (
            self._client.using() as connection,
            aclosing(
                connection.watch(state.keys.log, self._read_to + 1, puts_only=True)
            ) as responses,
        ):
            async for response in responses:
                for event in response.events:
                    await self._changed(event.kv)

    async def _changed(self, kv: Any) -> None:
        state = self._state
        self._read_to = kv.mod_revision
        if kv.key == state.keys.pointer:
            self._pointed(kv.value)
            return
        await self._record(kv)
        if state.snapshot < kv.create_revision < kv.mod_revision:
            # Its facts count here, and for nobody who reads the log from now on.
            raise StartOver("a record was written over")

    def _pointed(self, value: bytes) -> None:
        """There is a new snapshot."""
        state = self._state
        try:
            pointer = read_pointer(value, state.signer)
        except BadRecord as bad:
            self._bad_snapshot(f"pointer: {bad.reason}")
            return
        state.snapshot = pointer.revision
        state.size.cut(pointer.revision)
        if not state.whole or state.fold.rejected["rewritten"]:
            raise StartOver("new snapshot")  # which may have what this replica lacks

    async def _record(self, kv: Any) -> None:
        state = self._state
        name = kv.key[len(state.keys.log) :]
        state.size.add(kv.mod_revision, len(kv.key) + len(kv.value))
        first = kv.create_revision == kv.mod_revision
        facts, own = state.fold.take(name, kv.value, kv.create_revision, first)
        for fact in facts:
            state.give(kv.mod_revision, fact)
        if facts and own is None:
            state.overhear(facts)
        if facts:
            self._metrics.applied.inc(len(facts))
        if own is not None:
            self._metrics.returned(own.since)
        if perf_counter() - self._breath > SLICE_S:
            await asyncio.sleep(0)
            self._breath = perf_counter()


async def _secret(key: bytes, offered: bytes, connection: Connection) -> tuple[bytes, _Cluster]:
    """The pool's secret, which is `offered` where there was none."""
    # Not in one transaction: an etcd without space refuses those that might write.
    answer = await connection.kv.get(key, timeout=CALL_TIMEOUT_S)
    if not answer.kvs:
        absent = [KVService.txn_compare_create_revision(key, 0)]
        put = [KVService.txn_op_put(key, offered)]
        await connection.kv.txn(absent, put, timeout=CALL_TIMEOUT_S)
        answer = await connection.kv.get(key, timeout=CALL_TIMEOUT_S)
    secret = bytes(answer.kvs[0].value) if answer.kvs else b""
    if len(secret) != SECRET_BYTES:
        raise Away("other", f"{key.decode()} is no secret of {SECRET_BYTES} bytes")
    return secret, _Cluster(answer.header.cluster_id, answer.header.revision)
