"""An engine's HTTP server as far as metrics go: real sockets on loopback, every answer a test's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def page(body: bytes) -> bytes:
    """A good answer with this body."""
    return OK % (len(body), body)


@dataclass(slots=True)
class MetricsServer:
    """answer: what every request gets, byte for byte; None: silence until the client goes away;
    b"": a reset. requests: first lines. silent_now, silent_most: requests that wait."""

    answer: bytes | None
    port: int = 0
    requests: list[str] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    connections: int = 0
    silent_now: int = 0
    silent_most: int = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.endpoint}/metrics"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head.partition(b"\r\n")[0].decode())
                if self.answer is None:
                    self.silent_now += 1
                    self.silent_most = max(self.silent_most, self.silent_now)
                    await reader.read()
                    self.silent_now -= 1
                    break
                if not self.answer:
                    writer.transport.abort()
                    break
                writer.write(self.answer)
                await writer.drain()
        self.writers.discard(writer)
        writer.close()


@asynccontextmanager
async def metrics_server(answer: bytes | None, port: int = 0) -> AsyncIterator[MetricsServer]:
    """Listens as long as the block runs."""
    engine = MetricsServer(answer)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", port)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()
        for writer in engine.writers:
            writer.transport.abort()
