"""`homing register`: a sidecar of an engine, which registers it in etcd for as long as it lives.

starting ──(the engine answers 200)──▶ ready ──(SIGTERM)──▶ draining ──(drain_s)──▶ gone
"""

import asyncio
import logging
import signal
from contextlib import suppress

import aiohttp

from extproc.config import EtcdLog, ListedInstance
from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client
from extproc.log.etcd.keys import Keys

logger = logging.getLogger("homing.register")

LEASE_S = 10
"""So long after the sidecar's death the engine is gone."""

BEAT_S = 2.0
"""Between two signs of life, and two looks at the engine."""


class Registration:
    """One engine's entry in etcd, kept as long as `run` runs.

    entry: what is said of it; its state changes. health: URL that answers 200 once the engine is
    ready; None for one that is ready at once.
    """

    def __init__(
        self,
        settings: EtcdLog,
        pool: str,
        entry: ListedInstance,
        health: str | None,
        beat_s: float = BEAT_S,
    ) -> None:
        self._client = Client(settings)
        self._key = Keys(settings.prefix, pool).instances + str(entry.id).encode()
        self._health = health
        self._beat_s = beat_s
        self._entry = entry.model_copy(update={"state": "starting" if health else "ready"})
        self._lease = 0
        self._news = asyncio.Event()

    @property
    def state(self) -> str:
        """What is said now."""
        return self._entry.state

    def drain(self) -> None:
        """Let no new requests come; said at once."""
        self._become("draining")

    async def run(self) -> None:
        """Keep the entry until cancelled; where etcd is away it is written again afterwards."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._beat_s)
        ) as session:
            while True:
                if self.state == "starting" and await self._answers(session):
                    self._become("ready")
                self._news.clear()
                try:
                    await self._beat()
                except Away as away:  # said by the client
                    logger.debug("etcd: %s", away)
                try:
                    await asyncio.wait_for(self._news.wait(), self._beat_s)
                except TimeoutError:
                    continue

    async def end(self) -> None:
        """Take the entry away."""
        try:
            if self._lease:
                lease, self._lease = self._lease, 0
                await self._client.call(lambda c: c.lease.revoke(lease, timeout=CALL_TIMEOUT_S))
        except Away:
            logger.warning("etcd is away: the entry ends by itself in %d s", LEASE_S)
        finally:
            await self._client.close()

    def _become(self, state: str) -> None:
        if state != self.state:
            logger.info("instance %s is %s", self._entry.id, state)
            self._entry = self._entry.model_copy(update={"state": state})
            self._news.set()

    async def _beat(self) -> None:
        """Prolong the lease, or take a new one; the entry is written each time: it is small."""
        if self._lease and not await self._client.call(lambda c: c.keep_alive(self._lease)):
            self._lease = 0
        if not self._lease:
            grant = await self._client.call(
                lambda c: c.lease.grant(LEASE_S, timeout=CALL_TIMEOUT_S)
            )
            self._lease = grant.ID
        value = self._entry.model_dump_json(exclude_none=True).encode()
        await self._client.call(
            lambda c: c.kv.put(self._key, value, lease=self._lease, timeout=CALL_TIMEOUT_S)
        )

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        assert self._health is not None
        try:
            async with session.get(self._health, allow_redirects=False) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


async def keep(registration: Registration, drain_s: float) -> None:
    """Keep an engine registered until SIGTERM or SIGINT, then drain it; a second one ends it."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    running = asyncio.ensure_future(registration.run())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()  # raises: it ends in no other way
        registration.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), drain_s)
    finally:
        stopping.cancel()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await registration.end()
