"""Engines that keep what reached them, to the byte, and answer as the request's `x-do` says."""

import asyncio
import gzip
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h11

READ_BYTES = 256 * 1024
EVENTS = tuple(b'data: {"token": %d}\n\n' % number for number in range(1_000))
ZIPPED = gzip.compress(b"".join(EVENTS))
PIECE = b"a piece of an answer"


@dataclass(slots=True)
class Seen:
    """A request as it reached an engine. whole: its end was seen."""

    engine: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def picks(self) -> list[str]:
        """What Homing said, in order of preference; [] where it did not pick."""
        named = self.headers.get("x-gateway-destination-endpoint")
        return named.split(",") if named else []


@dataclass(slots=True)
class Engines:
    """endpoints: of all. seen: by the request's `x-case`, one entry each time that it came."""

    endpoints: list[str] = field(default_factory=list)
    seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of Envoy's, request by request."""
        with suppress(ConnectionError, h11.RemoteProtocolError):
            connection = _Connection(reader, writer)
            while (seen := await self._read(connection)) is not None:
                answer = getattr(connection, seen.headers["x-do"].replace("-", "_"))
                await answer(seen)
                if connection.state.our_state is not h11.DONE:
                    break
                connection.state.start_next_cycle()
        writer.close()

    async def _read(self, connection: "_Connection") -> Seen | None:
        seen: Seen | None = None
        while True:
            match event := await connection.event():
                case h11.Request():
                    headers = {n.decode(): v.decode("latin-1") for n, v in event.headers}
                    seen = Seen(
                        connection.endpoint, event.method.decode(), event.target.decode(), headers
                    )
                    self.seen[headers["x-case"]].append(seen)
                case h11.Data():
                    assert seen is not None
                    seen.body += event.data
                case h11.EndOfMessage():
                    assert seen is not None
                    seen.trailers = {n.decode(): v.decode() for n, v in event.headers}
                    seen.whole = True
                    return seen
                case h11.PAUSED:
                    return seen  # an upgrade
                case _:
                    return None


class _Connection:
    """How an engine answers: a method for each `x-do`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.state = h11.Connection(h11.SERVER)
        ip, port = writer.get_extra_info("sockname")
        self.endpoint = f"{ip}:{port}"

    async def event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self.state.next_event()) is h11.NEED_DATA:
            self.state.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _send(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self.state.send(event) or b"")
        await self._writer.drain()

    async def _whole(self, body: bytes, *headers: tuple[str, str]) -> None:
        length = ("content-length", str(len(body)))
        await self._send(
            h11.Response(status_code=200, headers=[*headers, length]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )

    async def echo(self, seen: Seen) -> None:
        """The same bytes."""
        await self._whole(bytes(seen.body), ("content-type", "application/octet-stream"))

    async def gzip(self, _: Seen) -> None:
        """A compressed body."""
        await self._whole(
            ZIPPED, ("content-encoding", "gzip"), ("content-type", "application/json")
        )

    async def events(self, _: Seen) -> None:
        """A streamed answer, an event a write, with trailers."""
        await self._begin_events()
        for one in EVENTS:
            await self._send(h11.Data(data=one))
            await asyncio.sleep(0)
        await self._send(h11.EndOfMessage(headers=[("x-usage", "1000")]))

    async def stall(self, _: Seen) -> None:
        """A piece, then nothing until the other side gives up."""
        await self._begin_events()
        await self._send(h11.Data(data=PIECE))
        await self._reader.read()

    async def reset(self, _: Seen) -> None:
        """A piece, then the connection breaks."""
        await self._begin_events()
        await self._send(h11.Data(data=PIECE))
        self._writer.transport.abort()

    async def reset_at_once(self, _: Seen) -> None:
        """The request was read, and the connection breaks."""
        self._writer.transport.abort()

    async def tunnel(self, seen: Seen) -> None:
        """An upgrade; every byte comes back."""
        upgrade = seen.headers["upgrade"]
        await self._send(
            h11.InformationalResponse(
                status_code=101, headers=[("connection", "upgrade"), ("upgrade", upgrade)]
            )
        )
        while data := await self._reader.read(READ_BYTES):
            self._writer.write(data)
            await self._writer.drain()

    async def _begin_events(self) -> None:
        headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=headers))


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[Engines]:
    """So many, on free loopback ports."""
    running = Engines()
    servers = [await asyncio.start_server(running.serve, "127.0.0.1", 0) for _ in range(count)]
    running.endpoints = ["{}:{}".format(*one.sockets[0].getsockname()) for one in servers]
    try:
        yield running
    finally:
        for server in servers:
            server.close()
