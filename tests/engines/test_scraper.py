"""When pages are fetched, and what becomes of every kind of answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from extproc.engines.metrics import Scraper
from extproc.engines.metrics.scraper import MOST_AT_ONCE, MOST_BYTES, TICK_S
from tests.engines.server import metrics_server, page


@dataclass(eq=False)
class Noted:
    """A target that notes what it is told."""

    url: str
    every_s: float = 0.001
    asks: int = 0
    told: list[object] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def interval(self) -> float:
        return self.every_s

    def asked(self) -> None:
        self.asks += 1

    def came(self, body: bytes | None) -> None:
        self._note(body)

    def failed(self, refused: bool) -> None:
        self._note("refused" if refused else "silent")

    def _note(self, what: object) -> None:
        self.told.append(what)
        self.heard.set()

    async def next(self) -> object:
        """What it is told next."""
        self.heard.clear()
        async with asyncio.timeout(30):
            await self.heard.wait()
        return self.told[-1]


@asynccontextmanager
async def scraping(*targets: Noted, patience_s: float = 20.0) -> AsyncIterator[Scraper]:
    scraper = Scraper(patience_s=patience_s)
    scraper.watch(targets)
    running = asyncio.create_task(scraper.run())
    try:
        yield scraper
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class TestAnswers:
    async def test_a_page_is_handed_over_whole(self) -> None:
        async with metrics_server(page(b"a 1\n" * 50_000)) as server:
            target = Noted(server.url)
            async with scraping(target):
                assert await target.next() == b"a 1\n" * 50_000
            assert server.requests[0] == "GET /metrics HTTP/1.1"

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
            b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
            page(b"x" * (MOST_BYTES + 1)),
        ],
        ids=["404", "503", "redirect", "too large"],
    )
    async def test_any_other_answer_is_an_answer_without_a_page(self, answer: bytes) -> None:
        async with metrics_server(answer) as server:
            target = Noted(server.url)
            async with scraping(target):
                assert await target.next() is None
                assert await target.next() is None
            assert {line.split()[1] for line in server.requests} == {"/metrics"}

    async def test_who_refuses_connections_or_resets_them_does_not_run(self) -> None:
        async with metrics_server(b"") as server:
            target = Noted(server.url)
            async with scraping(target):
                assert await target.next() == "refused"
        async with scraping(target):
            assert await target.next() == "refused"

    async def test_who_says_nothing_may_run(self) -> None:
        async with metrics_server(None) as server:
            target = Noted(server.url)
            async with scraping(target, patience_s=0.05):
                assert await target.next() == "silent"

    @pytest.mark.parametrize(
        "answer",
        [b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"],
    )
    async def test_what_is_no_http_is_no_answer(self, answer: bytes) -> None:
        async with metrics_server(answer) as server:
            target = Noted(server.url)
            async with scraping(target, patience_s=0.2):
                assert await target.next() == "silent"

    async def test_it_goes_on_after_every_failure(self) -> None:
        async with metrics_server(b"") as server:
            target = Noted(server.url)
            async with scraping(target):
                assert await target.next() == "refused"
                server.answer = page(b"back")
                while await target.next() != b"back":
                    pass

    async def test_a_connection_is_kept(self) -> None:
        async with metrics_server(page(b"a 1\n")) as server:
            target = Noted(server.url)
            async with scraping(target):
                for _ in range(5):
                    await target.next()
            assert server.connections == 1

    async def test_a_target_that_is_no_longer_watched_is_left_alone(self) -> None:
        async with metrics_server(page(b"")) as server:
            target, other = Noted(server.url), Noted(server.url + "?other")
            async with scraping(target, other) as scraper:
                await target.next()
                scraper.watch([other])
                asks = target.asks
                for _ in range(3):
                    await other.next()
            assert target.asks == asks


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestTimes:
    """What is due when: no clock runs here."""

    def test_a_new_target_is_due_at_once(self) -> None:
        scraper = Scraper(Clock())
        target = Noted("http://x/1", every_s=600.0)
        scraper.watch([target])
        assert scraper.due(1000.0) == [target]

    async def test_busy_ones_are_asked_more_often_than_idle_ones(self) -> None:
        async with metrics_server(page(b"")) as server:
            clock = Clock()
            busy, idle = Noted(server.url + "?busy", 0.2), Noted(server.url + "?idle", 2.0)
            scraper = Scraper(clock)
            scraper.watch([busy, idle])
            running = asyncio.create_task(scraper.run())
            for _ in range(100):
                clock.now += TICK_S * 5
                expected = busy.asks + idle.asks + len(scraper.due(clock.now))
                async with asyncio.timeout(30):
                    while busy.asks + idle.asks < expected or len(busy.told) < busy.asks:
                        await asyncio.sleep(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert 48 <= busy.asks <= 51, "ten seconds have passed"
        assert 4 <= idle.asks <= 6

    def test_many_that_are_due_together_are_spread_over_ticks(self) -> None:
        scraper = Scraper(Clock())
        scraper.watch([Noted(f"http://x/{n}") for n in range(200)])
        assert len(scraper.due(1000.0)) == 200 * TICK_S / 0.2

    async def test_no_more_than_so_many_are_under_way(self) -> None:
        async with metrics_server(None) as server:
            targets = [Noted(f"{server.url}?{n}") for n in range(1000)]
            async with scraping(*targets):
                async with asyncio.timeout(30):
                    while server.silent_now < MOST_AT_ONCE:
                        await asyncio.sleep(TICK_S)
                for _ in range(5):
                    await asyncio.sleep(TICK_S)
            assert server.silent_most == MOST_AT_ONCE
            assert sum(target.asks for target in targets) == MOST_AT_ONCE

    async def test_one_that_is_under_way_is_not_asked_again(self) -> None:
        async with metrics_server(None) as server:
            target = Noted(server.url)
            async with scraping(target):
                async with asyncio.timeout(30):
                    while not server.silent_now:
                        await asyncio.sleep(TICK_S)
                for _ in range(5):
                    await asyncio.sleep(TICK_S)
            assert target.asks == 1
