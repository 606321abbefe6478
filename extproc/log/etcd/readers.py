"""Which replica reads an engine's events for all, by a lease of a few seconds.

Every replica has a key under `/homing/<pool>/readers/` that ends with its lease, and says of which
instances it knows all that they hold. Of the replicas that are there, each instance belongs to the
one whose number goes best with its name (rendezvous hashing): the work is shared evenly, and when a
replica is gone only its instances get another reader.
"""

import asyncio
from contextlib import aclosing, suppress
from functools import partial
from time import monotonic

import msgspec
from xxhash import xxh3_64_intdigest

from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client, Connection
from extproc.log.etcd.keys import Keys
from extproc.log.etcd.reading import pages
from extproc.log.etcd.retries import Backoff
from extproc.terms import InstanceId

LEASE_S = 2
"""How long after its last sign of life a replica reads nothing any more; the least that etcd grants
with its usual timing. Another takes over within half a second after it."""

BEAT_S = 0.6
"""Between two signs of life."""

MOST_TOLD = 4096
"""Instances in one key; those beyond are left out."""


_names = msgspec.json.Decoder(list[str])


class Readers:
    """One process's part, for all its pools.

    writer: its number among the replicas.
    """

    def __init__(self, client: Client, writer: int) -> None:
        self._client = client
        self._writer = writer
        self._lease = 0
        self._until = float("-inf")
        self._wanted: dict[str, Keys] = {}
        self._written: set[str] = set()
        self._there: dict[str, dict[int, frozenset[InstanceId]]] = {}
        self._assured: dict[str, frozenset[InstanceId]] = {}
        self._asked = asyncio.Event()
        """Set once any pool is wanted."""
        self._changed = asyncio.Event()
        self._news = asyncio.Event()

    def reads(self, keys: Keys, instance: InstanceId) -> bool:
        """Whether this process is the instance's reader, now and for sure.

        The first question about a pool makes this process stand for it.
        """
        if keys.pool not in self._wanted:
            self._wanted[keys.pool] = keys
            self._asked.set()
            self._news.set()
        there = self._there.get(keys.pool, {})
        if monotonic() >= self._until or self._writer not in there:
            return False
        name = instance.encode()
        return self._writer == max(there, key=lambda writer: xxh3_64_intdigest(name, writer))

    def assure(self, pool: str, instances: frozenset[InstanceId]) -> None:
        """Tell the others of which instances all is known that they hold."""
        if instances != self._assured.get(pool, frozenset()):
            self._assured[pool] = instances
            self._written.discard(pool)
            self._changed.set()

    def assured(self, pool: str) -> frozenset[InstanceId]:
        """What all who are there, this process too, have told so."""
        return frozenset[InstanceId]().union(*self._there.get(pool, {}).values())

    async def run(self) -> None:
        """Keep the lease, and a key for each pool, until it is cancelled."""
        await self._asked.wait()
        backoff = Backoff()
        while True:
            try:
                await self._beat()
            except Away:
                await backoff.wait()
            else:
                backoff.reset()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), BEAT_S)

    async def listen(self, keys: Keys) -> None:
        """Know who is there for a pool, until it is cancelled."""
        while keys.pool not in self._wanted:
            self._news.clear()
            await self._news.wait()
        backoff = Backoff()
        while True:
            try:
                async with backoff.lasting():
                    await self._listen(keys)
            except Away:
                await backoff.wait()

    async def end(self) -> None:
        """Leave everything to the others at once."""
        self._until = float("-inf")
        if self._lease:
            lease, self._lease = self._lease, 0
            await self._client.call(lambda c: c.lease.revoke(lease, timeout=CALL_TIMEOUT_S))

    async def _beat(self) -> None:
        self._changed.clear()
        asked = monotonic()
        granted = LEASE_S
        if self._lease:
            granted = await self._client.call(lambda c: c.keep_alive(self._lease))
            if not granted:
                self._lease = 0
        if not self._lease:
            answer = await self._client.call(
                lambda c: c.lease.grant(LEASE_S, timeout=CALL_TIMEOUT_S)
            )
            self._lease, granted = answer.ID, answer.TTL
            self._written.clear()
        for pool, keys in list(self._wanted.items()):
            if pool not in self._written:
                self._written.add(pool)
                try:
                    await self._client.call(partial(self._stand, keys))
                except Away:
                    self._written.discard(pool)
                    raise
        self._until = asked + granted

    async def _stand(self, keys: Keys, connection: Connection) -> None:
        key = keys.reader(self._writer)
        told = sorted(self._assured.get(keys.pool, ()))[:MOST_TOLD]
        value = msgspec.json.encode(told)
        await connection.kv.put(key, value, lease=self._lease, timeout=CALL_TIMEOUT_S)

    async def _listen(self, keys: Keys) -> None:
        prefix = keys.readers
        answer = await self._client.call(lambda c: c.kv.get(prefix, timeout=CALL_TIMEOUT_S))
        revision = answer.header.revision
        there: dict[int, frozenset[InstanceId]] = {}
        async for page in pages(self._client, prefix, revision):
            for kv in page:
                _note(there, kv.key[len(prefix) :], kv.value)
        self._there[keys.pool] = there
        async with (
            self._client.using() as connection,
            aclosing(connection.watch(prefix, revision + 1)) as responses,
        ):
            async for response in responses:
                for event in response.events:
                    value = event.kv.value if event.type == 0 else None
                    _note(there, event.kv.key[len(prefix) :], value)


def _note(there: dict[int, frozenset[InstanceId]], name: bytes, value: bytes | None) -> None:
    """A replica said something, or (None) is gone; what cannot be read is left out."""
    try:
        writer = int(name, 16)
        if value is None:
            there.pop(writer, None)
        else:
            there[writer] = frozenset(map(InstanceId, _names.decode(value)))
    except (ValueError, msgspec.DecodeError):
        return
