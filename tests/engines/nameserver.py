"""A DNS server on loopback, UDP and TCP, that says what a test's table says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from dns.name import Name

UDP_BYTES = 512
"""Of an answer, without extensions; a longer one is cut, and asked for again over TCP."""


@dataclass(slots=True)
class Nameserver:
    """records: by name and type, as in a zone file. rcode: of every answer, where one is set.
    silent: no answer at all. asked: names and types, in order."""

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    rcode: dns.rcode.Rcode | None = None
    silent: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    over_tcp: int = 0
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, wire: bytes) -> dns.message.Message | None:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name, kind = question.name, question.rdtype.name
        self.asked.append((name.to_text(omit_final_dot=True), kind))
        if self.silent:
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        if self.rcode is not None:
            reply.set_rcode(self.rcode)
            return reply
        known = [have for have in self.records if have[0] == self.asked[-1][0]]
        if not known:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif texts := self.records.get(self.asked[-1]):
            reply.answer.append(_rrset(name, kind, texts))
        return reply


def _rrset(name: Name, kind: str, texts: list[str]) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(name, 0, "IN", kind, texts)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = self._server.answer(data)
        if reply is None:
            return
        wire = reply.to_wire()
        if len(wire) > UDP_BYTES:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        self._transport.sendto(wire, address)


@asynccontextmanager
async def nameserver() -> AsyncIterator[Nameserver]:
    """Listens as long as the block runs."""
    server = Nameserver()

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        server.over_tcp += 1
        if (reply := server.answer(await reader.readexactly(size))) is not None:
            wire = reply.to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            await writer.drain()
        writer.close()

    tcp = await asyncio.start_server(over_tcp, "127.0.0.1", 0)
    server.port = tcp.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(
        lambda: _Udp(server), local_addr=("127.0.0.1", server.port)
    )
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
