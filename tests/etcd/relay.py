"""A TCP relay to one etcd member, which a test can cut and mend: one replica's network."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.etcd.server import HOST

CHUNK = 64 * 1024


class Relay:
    """Passes bytes between whoever connects to `endpoint` and the member."""

    def __init__(self, member: str) -> None:
        self.member = member
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def endpoint(self) -> str:
        return f"{HOST}:{self._port}"

    async def mend(self) -> None:
        """Listen, at the port of before."""
        self._server = await asyncio.start_server(self._accept, HOST, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close all that is open, and refuse what comes."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """Keep all connections, and pass nothing."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass again, also what came meanwhile."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.member.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        both = ((reader, back), (there, writer))
        self._writers |= {writer, back}
        for source, sink in both:
            task = asyncio.ensure_future(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()
        self._writers.discard(sink)


@asynccontextmanager
async def relay(member: str) -> AsyncIterator[Relay]:
    """One that passes."""
    one = Relay(member)
    await one.mend()
    try:
        yield one
    finally:
        await one.cut()
