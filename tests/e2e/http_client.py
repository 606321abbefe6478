"""HTTP/1.1 and HTTP/2 clients that a test drives part by part: body, trailers, and giving up."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11

Headers: TypeAlias = Iterable[tuple[str, str]]
READ_BYTES = 64 * 1024


class Cut(Exception):
    """The answer ended before its end."""


@dataclass(slots=True)
class Reply:
    """An answer as the client got it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)


class Exchange(Protocol):
    """One request and its answer."""

    async def head(self, method: str, path: str, headers: Headers, end: bool = False) -> None:
        """Send the request's headers. end: and nothing else."""

    async def data(self, data: bytes) -> None:
        """Send a piece of its body."""

    async def end(self, trailers: Headers = ()) -> None:
        """End it."""

    async def piece(self) -> bytes | None:
        """Some more of the answer's body, None at its end. Raises Cut."""

    @property
    def reply(self) -> Reply:
        """The answer so far; its body is what `piece` gave."""

    async def abort(self) -> None:
        """Give up, as a client whose user has gone."""


class Client(Protocol):
    """Where exchanges begin."""

    #: Whether a body without a length must say that it comes in chunks.
    chunked: bool

    async def exchange(self) -> Exchange:
        """A new one."""


@asynccontextmanager
async def client(version: str, port: int) -> AsyncIterator[Client]:
    """version: `HTTP/1.1` (a connection for each exchange) or `HTTP/2` (one for all)."""
    made = Http1(port) if version == "HTTP/1.1" else await Http2.open(port)
    try:
        yield made
    finally:
        await made.close()


# --- HTTP/1.1 ---


class Http1:
    """A connection for each exchange."""

    chunked = True

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[Http1Exchange] = []

    async def exchange(self) -> "Http1Exchange":
        exchange = Http1Exchange(*await asyncio.open_connection("127.0.0.1", self._port))
        self._open.append(exchange)
        return exchange

    async def close(self) -> None:
        for exchange in self._open:
            exchange.writer.close()


class Http1Exchange:
    """A connection that carries one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._state = h11.Connection(h11.CLIENT)
        self.reply = Reply()

    async def head(self, method: str, path: str, headers: Headers, end: bool = False) -> None:
        await self._send(h11.Request(method=method, target=path, headers=list(headers)))
        if end:
            await self.end()

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self, trailers: Headers = ()) -> None:
        await self._send(h11.EndOfMessage(headers=list(trailers)))

    async def _send(self, event: h11.Event) -> None:
        self.writer.write(self._state.send(event) or b"")
        await self.writer.drain()

    async def piece(self) -> bytes | None:
        while True:
            try:
                event = self._state.next_event()
            except h11.RemoteProtocolError as error:
                raise Cut(str(error)) from None
            match event:
                case h11.NEED_DATA:
                    try:
                        self._state.receive_data(await self._reader.read(READ_BYTES))
                    except ConnectionError as error:
                        raise Cut(str(error)) from None
                case h11.InformationalResponse() | h11.Response():
                    self.reply.status = event.status_code
                    self.reply.headers = _text(event.headers)
                case h11.Data():
                    self.reply.body += event.data
                    return bytes(event.data)
                case h11.EndOfMessage():
                    self.reply.trailers = _text(event.headers)
                    return None
                case _:
                    raise Cut(repr(event))

    async def switch(self) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """After an upgrade: bytes that came already, and the two halves of the tunnel."""
        while self._state.their_state is not h11.SWITCHED_PROTOCOL:
            match event := self._state.next_event():
                case h11.NEED_DATA:
                    self._state.receive_data(await self._reader.read(READ_BYTES))
                case h11.InformationalResponse():
                    self.reply.status = event.status_code
                    self.reply.headers = _text(event.headers)
                case _:
                    raise Cut(repr(event))
        return bytes(self._state.trailing_data[0]), self._reader, self.writer

    async def abort(self) -> None:
        self.writer.transport.abort()


def _text(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in headers}


# --- HTTP/2 ---


class Http2:
    """One connection for all exchanges."""

    chunked = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        settings = h2.config.H2Configuration(header_encoding="utf-8")
        self.state = h2.connection.H2Connection(settings)
        self.exchanges: dict[int, Http2Exchange] = {}
        self.windows = asyncio.Condition()
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def open(cls, port: int) -> "Http2":
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        made.state.initiate_connection()
        await made.flush()
        return made

    async def exchange(self) -> "Http2Exchange":
        return Http2Exchange(self)

    async def flush(self) -> None:
        self.writer.write(self.state.data_to_send())
        await self.writer.drain()

    async def close(self) -> None:
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        self.writer.close()

    async def _read(self) -> None:
        while data := await self._reader.read(READ_BYTES):
            for event in self.state.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    size = event.flow_controlled_length or 0
                    self.state.acknowledge_received_data(size, event.stream_id)
                stream = getattr(event, "stream_id", 0)
                if stream in self.exchanges:
                    self.exchanges[stream].events.put_nowait(event)
            await self.flush()
            async with self.windows:
                self.windows.notify_all()
        for exchange in self.exchanges.values():
            exchange.events.put_nowait(h2.events.ConnectionTerminated())


class Http2Exchange:
    """A stream of the connection."""

    def __init__(self, connection: Http2) -> None:
        self._connection = connection
        self._state = connection.state
        self._id = 0
        self.events: asyncio.Queue[h2.events.Event] = asyncio.Queue()
        self.reply = Reply()

    async def head(self, method: str, path: str, headers: Headers, end: bool = False) -> None:
        self._id = self._state.get_next_available_stream_id()
        self._connection.exchanges[self._id] = self
        pseudo = [(":method", method), (":path", path), (":scheme", "http")]
        rest = [(":authority" if name == "host" else name, value) for name, value in headers]
        rest.sort(key=lambda header: not header[0].startswith(":"))
        self._state.send_headers(self._id, [*pseudo, *rest], end_stream=end)
        await self._connection.flush()

    async def data(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            window = self._state.local_flow_control_window(self._id)
            size = min(window, self._state.max_outbound_frame_size)
            if not size:
                async with self._connection.windows:
                    await self._connection.windows.wait()
                continue
            self._state.send_data(self._id, bytes(rest[:size]))
            rest = rest[size:]
            await self._connection.flush()

    async def end(self, trailers: Headers = ()) -> None:
        if last := list(trailers):
            self._state.send_headers(self._id, last, end_stream=True)
        else:
            self._state.end_stream(self._id)
        await self._connection.flush()

    async def piece(self) -> bytes | None:
        while True:
            match event := await self.events.get():
                case h2.events.ResponseReceived():
                    headers = {str(name): str(value) for name, value in event.headers or ()}
                    self.reply.status = int(headers[":status"])
                    self.reply.headers = headers
                case h2.events.DataReceived():
                    if event.data:
                        self.reply.body += event.data
                        return event.data
                case h2.events.TrailersReceived():
                    self.reply.trailers = {str(n): str(v) for n, v in event.headers or ()}
                case h2.events.StreamEnded():
                    return None
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise Cut(repr(event))

    async def abort(self) -> None:
        with suppress(h2.exceptions.StreamClosedError):
            self._state.reset_stream(self._id, h2.errors.ErrorCodes.CANCEL)
            await self._connection.flush()
