"""Fetches metrics pages in turn: often where requests are in flight, seldom where not.

while True: due(now) ─▶ GET, so many at a time ─▶ what came of it is told to the target
"""

import asyncio
import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import aiohttp

TICK_S = 0.02
"""Between looks at what is due: 1 % of a core for 200 targets."""

MOST_AT_ONCE = 32
"""Scrapes under way at a time."""

PATIENCE_S = 2.0
"""So long a page may usually take."""

MOST_BYTES = 8 * 1024 * 1024
"""Of a page; a larger one is left at that, and counts as one that says nothing."""


_SPREAD_S = 0.2
"""Targets that are all due at once are asked for over this time."""

_NOBODY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)


class Target(Protocol):
    """A metrics page."""

    @property
    def url(self) -> str:
        """Where it is; unique among the targets."""

    def interval(self) -> float:
        """Seconds from the start of one scrape to the start of the next, as things are now."""

    def asked(self) -> None:
        """The page is asked for now."""

    def came(self, body: bytes | None) -> None:
        """There was an HTTP answer; None where it is no page of metrics."""

    def failed(self, refused: bool) -> None:
        """There was none. refused: the connection was refused or reset; else it took too long."""


@dataclass(slots=True)
class _Entry:
    target: Target
    asked_at: float = float("-inf")
    under_way: bool = False


class Scraper:
    """Scrapes what it is told to, with one client.

    clock: seconds, rising. patience_s: how long a page may take.
    """

    def __init__(
        self, clock: Callable[[], float] = monotonic, patience_s: float = PATIENCE_S
    ) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._entries: dict[str, _Entry] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def watch(self, targets: Sequence[Target]) -> None:
        """These are all targets; one with the URL of an earlier one takes its turn."""
        before, self._entries = self._entries, {}
        for target in targets:
            entry = before.get(target.url) or _Entry(target)
            entry.target = target
            self._entries[target.url] = entry

    def due(self, now: float) -> list[Target]:
        """What should be asked for now, the longest overdue first.

        Of targets that are all due together a few are taken each tick, so that they spread: a
        burst of pages would hold up the picks between them.
        """
        overdue = [
            (entry.asked_at + interval - now, entry)
            for entry in self._entries.values()
            if not entry.under_way and entry.asked_at + (interval := entry.target.interval()) <= now
        ]
        overdue.sort(key=lambda pair: pair[0])
        room = min(_share(len(self._entries)), MOST_AT_ONCE - len(self._under_way))
        return [entry.target for _, entry in overdue[: max(room, 0)]]

    async def run(self) -> None:
        """Scrape until it is cancelled."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self._patience_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compression costs the engine more than it saves here.
            headers={"Accept": "text/plain", "Accept-Encoding": "identity"},
        ) as session:
            try:
                while True:
                    for target in self.due(self._clock()):
                        self._start(session, target)
                    await asyncio.sleep(TICK_S)
            finally:
                for task in self._under_way:
                    task.cancel()
                await asyncio.gather(*self._under_way, return_exceptions=True)

    def _start(self, session: aiohttp.ClientSession, target: Target) -> None:
        entry = self._entries[target.url]
        entry.asked_at, entry.under_way = self._clock(), True
        target.asked()
        task = asyncio.ensure_future(self._scrape(session, entry, target))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _scrape(self, session: aiohttp.ClientSession, entry: _Entry, target: Target) -> None:
        try:
            body = await _fetch(session, target.url)
        except TimeoutError:
            target.failed(refused=False)
        except (aiohttp.ClientError, OSError) as error:
            target.failed(refused=_nobody(error))
        else:
            target.came(body)
        finally:
            entry.under_way = False


async def _fetch(session: aiohttp.ClientSession, url: str) -> bytes | None:
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            return None
        chunks, size = [], 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > MOST_BYTES:
                answer.close()
                return None
            chunks.append(chunk)
        return b"".join(chunks)


def _nobody(error: Exception) -> bool:
    """Whether no process listens there, or the one that did has ended."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return True
    return getattr(error, "errno", None) in _NOBODY


def _share(targets: int) -> int:
    """How many of so many targets may be asked for in one tick."""
    return math.ceil(targets * TICK_S / _SPREAD_S)
