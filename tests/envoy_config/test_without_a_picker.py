"""What the bootstrap does while no Homing runs: real Envoy, real upstreams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from extproc.envoy import bootstrap_yaml
from extproc.stream.headers import CONTROL_HEADERS
from tests.envoy_config.configs import config, dead_port
from tests.envoy_config.running import Envoy, Upstream, running_envoy, upstreams

MODES = ("BUFFERED", "FULL_DUPLEX_STREAMED")


@asynccontextmanager
async def stack(
    folder: Path, mode: str = "BUFFERED", dead_engines: int = 0
) -> AsyncIterator[tuple[Envoy, list[Upstream]]]:
    """Two engines that live, some that do not, and a picker that is down."""
    with dead_port() as picker, dead_port() as dead:
        async with upstreams("a", "b") as engines:
            endpoints = [engine.endpoint for engine in engines] + [dead] * bool(dead_engines)
            settings = config(endpoints, pickers=[picker], request_body_mode=mode)
            async with running_envoy(bootstrap_yaml(settings), folder) as envoy:
                await envoy.until("cluster.homing.membership_healthy", 0)
                yield envoy, engines


@pytest.mark.parametrize("mode", MODES)
async def test_every_request_is_balanced(mode: str, tmp_path: Path) -> None:
    async with stack(tmp_path, mode) as (envoy, engines), aiohttp.ClientSession(envoy.url) as http:
        for number in range(10):
            async with http.post("/v1/chat/completions", data=b"x" * number) as answer:
                assert answer.status == 200
            async with http.get("/v1/models") as answer:
                assert answer.status == 200
    assert sum(len(engine.requests) for engine in engines) == 20
    assert all(engine.requests for engine in engines)


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_cannot_choose_the_engine(mode: str, tmp_path: Path) -> None:
    async with stack(tmp_path, mode) as (envoy, engines), aiohttp.ClientSession(envoy.url) as http:
        wanted = engines[0].endpoint
        headers = dict.fromkeys(CONTROL_HEADERS, wanted) | {"X-Homing-Anything": wanted}
        for _ in range(10):
            async with http.post("/v1/completions", data=b"{}", headers=headers) as answer:
                assert answer.status == 200
                arrived = (await answer.json())["headers"]
                assert wanted not in (arrived.keys() - {"host"}), arrived
                assert not {name.lower() for name in headers} & arrived.keys()
    assert engines[1].requests


async def test_a_client_cannot_ask_for_retries(tmp_path: Path) -> None:
    async with stack(tmp_path) as (envoy, _), aiohttp.ClientSession(envoy.url) as http:
        headers = {"x-envoy-retry-on": "5xx", "x-envoy-upstream-rq-timeout-ms": "1"}
        async with http.post("/v1/completions", data=b"{}", headers=headers) as answer:
            assert answer.status == 200
            assert not headers.keys() & (await answer.json())["headers"].keys()


async def test_a_dead_engine_costs_no_request(tmp_path: Path) -> None:
    # Worst where half of the engines are dead: it has the fewest requests, so it is preferred.
    count = 200
    async with upstreams("a") as (engine,):
        with dead_port() as picker, dead_port() as dead:
            settings = config([engine.endpoint, dead], pickers=[picker])
            async with (
                running_envoy(bootstrap_yaml(settings), tmp_path) as envoy,
                aiohttp.ClientSession(envoy.url, connector=aiohttp.TCPConnector(limit=0)) as http,
            ):
                await envoy.until("cluster.homing.membership_healthy", 0)
                statuses = await asyncio.gather(*(_status(http) for _ in range(count)))
                assert statuses == [200] * count
                # More at once than the 3 that Envoy retries if not told otherwise.
                assert (await envoy.statistic("cluster.engines.upstream_rq_retry") or 0) > 3
    assert len(engine.requests) == count


async def _status(http: aiohttp.ClientSession) -> int:
    async with http.post("/v1/completions", data=b"{}") as answer:
        return answer.status


async def test_a_body_is_repeated_whole(tmp_path: Path) -> None:
    async with (
        stack(tmp_path, dead_engines=1) as (envoy, _),
        aiohttp.ClientSession(envoy.url) as http,
    ):
        while not await envoy.statistic("cluster.engines.upstream_rq_retry"):
            async with http.post("/v1/completions", data=BytesIO(b"x" * 2_000_000)) as answer:
                assert answer.status == 200
                assert (await answer.json())["body_bytes"] == 2_000_000


async def test_the_engine_is_told_who_asks(tmp_path: Path) -> None:
    async with stack(tmp_path) as (envoy, _), aiohttp.ClientSession(envoy.url) as http:
        claimed = {"x-forwarded-for": "10.1.1.1", "x-envoy-external-address": "10.1.1.1"}
        async with http.get("/v1/models", headers=claimed) as answer:
            headers = (await answer.json())["headers"]
    claims, _, seen = headers["x-forwarded-for"].rpartition(",")
    assert (claims, seen != "10.1.1.1") == ("10.1.1.1", True)
    assert headers["x-envoy-external-address"] == "127.0.0.1"


async def test_a_request_that_an_engine_has_begun_is_not_repeated(tmp_path: Path) -> None:
    begun = 0

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        await reader.readuntil(b"\r\n\r\n")
        begun += 1
        writer.transport.abort()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with dead_port() as picker:
        settings = config([f"127.0.0.1:{port}"], pickers=[picker])
        async with (
            running_envoy(bootstrap_yaml(settings), tmp_path) as envoy,
            aiohttp.ClientSession(envoy.url) as http,
            http.post("/v1/completions", data=b"{}") as answer,
        ):
            assert answer.status == 503
    server.close()
    assert begun == 1


async def test_no_answer_is_too_long(tmp_path: Path) -> None:
    async with (
        stack(tmp_path) as (envoy, _),
        aiohttp.ClientSession(envoy.url) as http,
        http.post("/v1/completions", data=b"{}") as answer,
    ):
        told = (await answer.json())["headers"]
    assert "x-envoy-expected-rq-timeout-ms" not in told


async def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with dead_port() as picker:
        settings = config([f"127.0.0.1:{port}"], pickers=[picker], idle_timeout_s=1)
        async with (
            running_envoy(bootstrap_yaml(settings), tmp_path) as envoy,
            aiohttp.ClientSession(envoy.url) as http,
            http.post("/v1/completions", data=b"{}") as answer,
        ):
            assert answer.status == 504
    server.close()


async def test_trailers_reach_the_engine(tmp_path: Path) -> None:
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result(await reader.readuntil(b"x-checksum: 1\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with dead_port() as picker:
        settings = config([f"127.0.0.1:{port}"], pickers=[picker])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
                b"trailer: x-checksum\r\n\r\n2\r\n{}\r\n0\r\nx-checksum: 1\r\n\r\n"
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 204")
            assert b"2\r\n{}\r\n0\r\nx-checksum: 1" in arrived.result()
            writer.close()
    server.close()


async def test_envoy_closes_an_idle_connection_before_the_engine_does(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        async with asyncio.timeout(5):  # uvicorn's keep-alive
            assert await reader.read() == b""
        closed.set()
        writer.close()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with dead_port() as picker:
        settings = config([f"127.0.0.1:{port}"], pickers=[picker])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            async with aiohttp.ClientSession(envoy.url) as http, http.get("/health") as answer:
                assert answer.status == 204
            await closed.wait()
    server.close()
