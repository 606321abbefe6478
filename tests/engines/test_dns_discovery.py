"""Instances from the addresses of a name, against a real DNS server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import dns.rcode
import pytest

from extproc.config import DnsDiscovery as Settings
from extproc.engines import Instance, State
from extproc.engines.discovery import DiscoveryError
from extproc.engines.discovery import dns as module
from extproc.engines.discovery.dns import DnsDiscovery
from tests.engines.nameserver import Nameserver, nameserver

NAME = "engines.example"
A = (NAME, "A")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A discovery that is followed, list by list."""

    def __init__(self, lists: AsyncIterator[Sequence[Instance]], clock: Clock) -> None:
        self._lists = lists
        self.clock = clock

    async def next(self) -> dict[str, State]:
        async with asyncio.timeout(30):
            return {one.endpoint: one.state for one in await anext(self._lists)}


@asynccontextmanager
async def watching(server: Nameserver, **settings: Any) -> AsyncIterator[Watched]:
    clock = Clock()
    given = {"kind": "dns", "name": NAME, "every_s": 0.001, "nameservers": (server.endpoint,)}
    if settings.get("records") != "SRV":
        given["port"] = 8000
    lists = DnsDiscovery(Settings(**given | settings), scraped=True, clock=clock).watch()
    try:
        yield Watched(lists, clock)
    finally:
        await lists.aclose()


async def test_every_address_is_an_instance_and_changes_are_found() -> None:
    async with nameserver() as server, watching(server, linger_s=0) as watched:
        server.records[A] = ["10.0.0.8", "10.0.0.7"]
        assert await watched.next() == {"10.0.0.7:8000": "ready", "10.0.0.8:8000": "ready"}
        server.records[A] = ["10.0.0.7", "10.0.0.8", "10.0.0.9"]
        assert len(await watched.next()) == 3
        watched.clock.now += 1
        server.records[A] = ["10.0.0.9"]
        assert await watched.next() == {"10.0.0.9:8000": "ready"}


async def test_an_answer_in_another_order_is_no_change() -> None:
    async with nameserver() as server, watching(server) as watched:
        server.records[A] = ["10.0.0.7", "10.0.0.8"]
        await watched.next()
        following = asyncio.ensure_future(watched.next())
        asked = len(server.asked)
        server.records[A] = ["10.0.0.8", "10.0.0.7"]
        async with asyncio.timeout(30):
            while len(server.asked) < asked + 5:
                await asyncio.sleep(0.001)
        assert not following.done()
        server.records[A] = ["10.0.0.9", "10.0.0.8", "10.0.0.7"]
        assert len(await following) == 3


async def test_an_address_that_is_missing_drains_for_a_while_and_may_come_back() -> None:
    async with nameserver() as server, watching(server, linger_s=30) as watched:
        server.records[A] = ["10.0.0.7", "10.0.0.8"]
        await watched.next()
        server.records[A] = ["10.0.0.8"]
        drained = {"10.0.0.7:8000": "draining", "10.0.0.8:8000": "ready"}
        assert await watched.next() == drained
        server.records[A] = ["10.0.0.7", "10.0.0.8"]
        assert set((await watched.next()).values()) == {"ready"}
        server.records[A] = ["10.0.0.8"]
        assert await watched.next() == drained
        watched.clock.now += 31
        assert await watched.next() == {"10.0.0.8:8000": "ready"}


async def test_ipv6_addresses_have_brackets() -> None:
    async with nameserver() as server, watching(server, records="AAAA") as watched:
        server.records[NAME, "AAAA"] = ["fd00::9"]
        assert await watched.next() == {"[fd00::9]:8000": "ready"}


async def test_services_bring_their_ports_and_a_machine_counts_once() -> None:
    async with nameserver() as server, watching(server, records="SRV") as watched:
        server.records[NAME, "SRV"] = [
            "0 5 8001 one.example.",
            "0 5 8002 one.example.",
            "0 5 9000 two.example.",
            "9 5 7000 backup.example.",
        ]
        server.records["one.example", "A"] = ["10.0.0.7"]
        server.records["one.example", "AAAA"] = ["fd00::7"]
        server.records["two.example", "AAAA"] = ["fd00::8"]
        server.records["backup.example", "A"] = ["10.0.0.9"]
        assert set(await watched.next()) == {"10.0.0.7:8001", "10.0.0.7:8002", "[fd00::8]:9000"}


async def test_an_answer_too_long_for_a_datagram_is_read_whole() -> None:
    async with nameserver() as server, watching(server) as watched:
        server.records[A] = [f"10.0.1.{n}" for n in range(200)]
        assert len(await watched.next()) == 200
        assert server.over_tcp


@pytest.mark.parametrize("records", [{}, {(NAME, "TXT"): ['"x"']}], ids=["NXDOMAIN", "no data"])
async def test_a_name_without_addresses_has_no_instances(
    records: dict[tuple[str, str], list[str]],
) -> None:
    async with nameserver() as server, watching(server) as watched:
        server.records = records
        assert await watched.next() == {}


@pytest.mark.parametrize("trouble", ["refused", "servfail", "silent"])
async def test_a_server_that_does_not_answer_takes_nobody_away(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    async with nameserver() as server:
        server.records[A] = ["10.0.0.7"]
        settings = Settings(
            kind="dns", name=NAME, port=8000, every_s=0.001, nameservers=(server.endpoint,)
        )
        discovery = DnsDiscovery(settings, scraped=True)
        lists = discovery.watch()
        await anext(lists)
        if trouble == "silent":
            server.silent = True
        else:
            server.rcode = dns.rcode.from_text(trouble)
        with pytest.raises(DiscoveryError, match=NAME):
            await anext(lists)
        server.silent, server.rcode = False, None
        (again,) = await anext(discovery.watch())
        assert (again.endpoint, again.state) == ("10.0.0.7:8000", State.READY)
        assert again.metrics == "http://10.0.0.7:8000/metrics"
