"""What clients send and get through real Envoy, in every body mode: nothing lost, nothing altered.

After each test no stream is open, no byte held, no request in flight, and no stream was ended for
a breach of the protocol.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from uuid import uuid4

import pytest
import pytest_asyncio

from extproc.serve import App
from tests.e2e.http_client import Client, Cut, Exchange, Reply, client
from tests.e2e.http_engine import EVENTS, PIECE, ZIPPED, Seen
from tests.e2e.modes import MODES, OFTEN, Gateway, Mode, gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
FILES = "/v1/files"
VERSIONS = ("HTTP/1.1", "HTTP/2")
TRAILERS = (("x-checksum", "abc"), ("x-more", "def"))
MANY = 100
UNSEEN = "load (body_not_seen)"


def modes(of: Sequence[Mode]) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    params = [pytest.param(m, marks=() if m in OFTEN else slow, id=str(m)) for m in of]
    return pytest.mark.parametrize("mode", params)


every_mode = modes(MODES)
every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path_factory.mktemp("gateway")) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def gate(running: Gateway) -> AsyncIterator[Gateway]:
    yield running
    await running.settles()


def chat(size: int) -> bytes:
    """A chat body of exactly so many bytes, unlike any other."""
    opening = f"{uuid4()}: the ships bring spice and salt to the harbour. "
    rest = size - len(_chat(opening))
    return _chat(opening + ("and copper, tin, amber " * (rest // 23 + 1))[:rest])


def _chat(words: str) -> bytes:
    message = {"role": "user", "content": words}
    return json.dumps({"model": "model-0", "messages": [message]}).encode()


async def begin(
    clients: Client,
    do: str,
    path: str = FILES,
    length: int | None = None,
    method: str = "POST",
    more: Sequence[tuple[str, str]] = (),
) -> tuple[Exchange, str]:
    """A request's headers; length: of its body, None where it is not said."""
    case = str(uuid4())
    framing: tuple[tuple[str, str], ...] = ()
    if length is not None:
        framing = (("content-length", str(length)),)
    elif clients.chunked:
        framing = (("transfer-encoding", "chunked"),)
    exchange = await clients.exchange()
    await exchange.head(
        method, path, [("host", "engines"), ("x-do", do), ("x-case", case), *framing, *more]
    )
    return exchange, case


async def send(clients: Client, do: str, path: str, body: bytes) -> tuple[Exchange, str]:
    exchange, case = await begin(clients, do, path, len(body))
    if body:
        await exchange.data(body)
    await exchange.end()
    return exchange, case


async def get(clients: Client) -> tuple[Exchange, str]:
    case = str(uuid4())
    exchange = await clients.exchange()
    headers = [("host", "engines"), ("x-do", "echo"), ("x-case", case)]
    await exchange.head("GET", "/v1/models", headers, end=True)
    return exchange, case


def under_way(app: App) -> int:
    """Streams whose answer has not ended."""
    states = app.processor.states()
    return states.total() - states["answer_done"]


async def finish(exchange: Exchange) -> Reply:
    """The answer, read to its end."""
    async with asyncio.timeout(60):
        while await exchange.piece() is not None:
            pass
    return exchange.reply


def came(gate: Gateway, case: str, mode: Mode) -> Seen:
    """The request as the one engine saw it that the pick named, and no other."""
    (seen,) = gate.engines.seen.pop(case)
    assert seen.whole
    assert seen.picks[:1] == ([] if mode.observed else [seen.engine])
    return seen


@every_mode
@every_version
async def test_a_request_without_a_body_has_an_endpoint(
    gate: Gateway, mode: Mode, version: str
) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await get(clients)
        reply = await finish(exchange)
    seen = came(gate, case, mode)
    assert (seen.method, seen.path, bytes(seen.body)) == ("GET", "/v1/models", b"")
    assert (reply.status, bytes(reply.body)) == (200, b"")


@every_mode
@every_version
@pytest.mark.parametrize("size", [0, 1, 62_000, 62_001, 300_000, 5_000_000])
async def test_a_body_reaches_the_engine_and_comes_back_as_it_was(
    gate: Gateway, mode: Mode, version: str, size: int
) -> None:
    body = chat(size) if size > 100 else b"x" * size
    path = CHAT if size > 100 else FILES
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await send(clients, "echo", path, body)
        reply = await finish(exchange)
    seen = came(gate, case, mode)
    assert seen.body == body
    assert (reply.status, reply.body == body) == (200, True)
    if path == CHAT and not mode.observed:
        why = {True: ("new",), False: (UNSEEN,), None: ("new", UNSEEN)}[mode.reads(size)]
        assert reply.headers["x-homing-why"].startswith(why)


@modes([mode for mode in MODES if not mode.early])  # docs/limits.md says why
@every_version
async def test_a_chunked_body_that_ends_in_trailers_is_routed_with_them(
    gate: Gateway, mode: Mode, version: str
) -> None:
    body = chat(50_000)
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await begin(clients, "echo", CHAT)
        for at in range(0, len(body), 7_000):
            await exchange.data(body[at : at + 7_000])
        await exchange.end(TRAILERS)
        reply = await finish(exchange)
    seen = came(gate, case, mode)
    assert seen.body == (body + body if mode.doubles_before_trailers else body)
    assert seen.trailers == dict(TRAILERS)
    assert (reply.status, reply.body == seen.body) == (200, True)


@every_mode
@every_version
async def test_a_thousand_events_come_through_with_their_trailers(
    gate: Gateway, mode: Mode, version: str
) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await send(clients, "events", CHAT, chat(1_000))
        reply = await finish(exchange)
    came(gate, case, mode)
    assert reply.body == b"".join(EVENTS)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.trailers == ({"x-usage": "1000"} if version == "HTTP/2" else reply.trailers)


@every_mode
@every_version
async def test_a_compressed_answer_stays_as_it_is(gate: Gateway, mode: Mode, version: str) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await send(clients, "gzip", CHAT, chat(1_000))
        reply = await finish(exchange)
    came(gate, case, mode)
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.body == ZIPPED


@every_mode
@every_version
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(
    gate: Gateway, mode: Mode, version: str
) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await begin(clients, "echo", CHAT, length=300_000)
        await exchange.data(chat(300_000)[:100_000])
        await until(lambda: gate.app(mode).processor.open_streams == 1)
        await exchange.abort()
        await gate.settles()
    assert not any(seen.whole for seen in gate.engines.seen.pop(case, []))


@every_mode
@every_version
async def test_a_client_that_leaves_in_the_middle_of_the_answer_leaves_nothing_behind(
    gate: Gateway, mode: Mode, version: str
) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await send(clients, "stall", CHAT, chat(1_000))
        if mode.shows_at_once:
            assert await exchange.piece() == PIECE
        else:
            await until(lambda: bool(gate.engines.seen[case]))
        # Another request has gone the same way: what Envoy said of the first one is heard.
        await finish((await get(clients))[0])
        seen_on = 1 if mode.shows_the_end else 0
        await until(lambda: under_way(gate.app(mode)) == seen_on)
        await exchange.abort()
        await gate.settles()
    came(gate, case, mode)


@every_mode
@every_version
@pytest.mark.parametrize("do", ["reset", "reset-at-once"])
async def test_an_engine_that_breaks_is_not_asked_twice_and_the_client_is_told(
    gate: Gateway, mode: Mode, version: str, do: str
) -> None:
    async with client(version, gate.port(mode)) as clients:
        exchange, case = await send(clients, do, CHAT, chat(1_000))
        try:
            failed = (await finish(exchange)).status >= 500
        except Cut:
            failed = True
    came(gate, case, mode)
    assert failed


@every_mode
async def test_a_hundred_at_once_get_each_their_own(gate: Gateway, mode: Mode) -> None:
    async def one(clients: Client, number: int) -> None:
        body = chat(1_000 + 700 * number)
        exchange, case = await send(clients, "echo", CHAT, body)
        reply = await finish(exchange)
        assert came(gate, case, mode).body == body
        assert (reply.status, reply.body == body) == (200, True)

    port = gate.port(mode)
    async with client("HTTP/1.1", port) as first, client("HTTP/2", port) as second:
        await asyncio.gather(*(one((first, second)[n % 2], n) for n in range(MANY)))


TUNNELS = [mode for mode in MODES if not mode.request.startswith("BUFFERED") or mode.overrides]
"""A body that is buffered is shown at its end, which a tunnel has not: Homing must be allowed to
ask for less, or the upgrade be taken from the filter (`upgrade_configs.filters`)."""


@pytest.mark.parametrize("mode", TUNNELS, ids=str)
async def test_an_upgraded_connection_passes_untouched(gate: Gateway, mode: Mode) -> None:
    async with client("HTTP/1.1", gate.port(mode)) as clients:
        exchange, case = await upgrade(clients)
        async with asyncio.timeout(20):
            first, reader, writer = await exchange.switch()
            assert exchange.reply.status == 101
            for frame in (b"\x81\x05hello", bytes(range(256)) * 1_000):
                writer.write(frame)
                back = first + await reader.readexactly(len(frame) - len(first))
                assert back == frame
                first = b""
        await exchange.abort()
        await gate.settles()
    (seen,) = gate.engines.seen.pop(case)
    assert seen.headers["upgrade"] == "websocket"
    assert seen.picks == []


async def upgrade(clients: Client) -> tuple[Exchange, str]:
    case = str(uuid4())
    exchange = await clients.exchange()
    headers = [
        ("host", "engines"),
        ("x-do", "tunnel"),
        ("x-case", case),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    await exchange.head("GET", "/v1/realtime", headers, end=True)
    return exchange, case


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)
