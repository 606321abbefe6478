"""What the bootstrap does while Homing picks, or breaks while it reads: real Envoy, real gRPC."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from extproc.envoy import bootstrap_yaml
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from proto_gen.processing_mode_pb2 import ProcessingMode
from tests.envoy_config.configs import config, dead_port
from tests.envoy_config.pickers import carry_on, die_with_the_body, homing, scripted
from tests.envoy_config.running import Envoy, Upstream, running_envoy, upstreams

MODES = ("BUFFERED", "FULL_DUPLEX_STREAMED")
MIB = 1024 * 1024
FREE = "127.0.0.1:0"

UNREAD = "/v1/audio/transcriptions"
"""A path whose bodies say nothing about a prefix."""


def chat(question: str) -> bytes:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"model": "model-0", "messages": messages}).encode()


@asynccontextmanager
async def picked(
    folder: Path, mode: str, dead: tuple[str, ...] = (), buffer_limit_bytes: int = 40 * MIB
) -> AsyncIterator[tuple[Envoy, list[Upstream]]]:
    """Homing picks from two engines, and from some that are down."""
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(upstreams("a", "b"))
        endpoints = [*(engine.endpoint for engine in engines), *dead]
        picker = await stack.enter_async_context(homing(config(endpoints, listen=FREE)))
        settings = config(
            endpoints,
            pickers=[picker],
            request_body_mode=mode,
            buffer_limit_bytes=buffer_limit_bytes,
        )
        envoy = await stack.enter_async_context(running_envoy(bootstrap_yaml(settings), folder))
        await envoy.until("cluster.homing.membership_healthy", 1)
        yield envoy, engines


@pytest.mark.parametrize("mode", MODES)
async def test_envoy_follows_the_pick_and_no_client(mode: str, tmp_path: Path) -> None:
    async with (
        picked(tmp_path, mode) as (envoy, engines),
        aiohttp.ClientSession(envoy.url) as http,
    ):
        served = set()
        for engine in engines * 3:
            headers = {"x-gateway-destination-endpoint": engine.endpoint}
            body = chat("the same prompt, asked again and again " * 40)
            async with http.post("/v1/chat/completions", data=body, headers=headers) as answer:
                seen = await answer.json()
                served.add(seen["served_by"])
        assert seen["headers"]["x-gateway-destination-endpoint"].startswith(
            next(engine.endpoint for engine in engines if engine.name in served)
        )
    assert len(served) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_picked_engine_that_is_down_is_replaced_by_the_next_of_the_list(
    mode: str, tmp_path: Path
) -> None:
    with dead_port() as down:
        async with (
            picked(tmp_path, mode, dead=(down,)) as (envoy, engines),
            aiohttp.ClientSession(envoy.url) as http,
        ):
            for _ in range(20):
                async with http.post(UNREAD, data=BytesIO(b"x" * 2 * MIB)) as answer:
                    assert answer.status == 200
                    seen = await answer.json()
                    listed = seen["headers"]["x-gateway-destination-endpoint"].split(",")
                    assert {*listed, down} == {*(e.endpoint for e in engines), down}
                    first = next(endpoint for endpoint in listed if endpoint != down)
                    served = next(e for e in engines if e.endpoint == first)
                    assert seen["served_by"] == served.name
            assert await envoy.statistic("cluster.engines.upstream_rq_retry")
            assert down not in listed, "Envoy has told that it could not connect"
    assert sum(len(engine.requests) for engine in engines) == 20


async def test_a_body_above_the_buffer_limit_is_refused_only_where_bodies_are_buffered(
    tmp_path: Path,
) -> None:
    statuses = {}
    for mode in MODES:
        folder = tmp_path / mode
        folder.mkdir()
        async with (
            picked(folder, mode, buffer_limit_bytes=32 * MIB) as (envoy, _),
            aiohttp.ClientSession(envoy.url) as http,
        ):
            for size in (30 * MIB, 34 * MIB):
                async with http.post(UNREAD, data=BytesIO(b"x" * size)) as answer:
                    statuses[mode, size // MIB] = answer.status
    assert statuses == {
        ("BUFFERED", 30): 200,
        ("BUFFERED", 34): 413,
        ("FULL_DUPLEX_STREAMED", 30): 200,
        ("FULL_DUPLEX_STREAMED", 34): 200,
    }


async def test_more_than_1024_answers_can_be_under_way(tmp_path: Path) -> None:
    count = 1100
    begun, all_begun = 0, asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        nonlocal begun
        begun += 1
        if begun == count:
            all_begun.set()
        await all_begun.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/held", hold)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=count).start()
    engine = f"127.0.0.1:{runner.addresses[0][1]}"
    async with homing(config([engine], listen=FREE)) as picker:
        settings = config([engine], pickers=[picker])
        async with (
            running_envoy(bootstrap_yaml(settings), tmp_path) as envoy,
            aiohttp.ClientSession(
                envoy.url,
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(60),
            ) as http,
        ):
            await envoy.until("cluster.homing.membership_healthy", 1)
            statuses = await asyncio.gather(*(_status(http, "/held") for _ in range(count)))
            for cluster in ("homing", "engines"):
                assert await envoy.statistic(f"cluster.{cluster}.upstream_rq_pending_overflow") == 0
    await runner.cleanup()
    assert Counter(statuses) == {200: count}


async def _status(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as answer:
        return answer.status


async def test_a_picker_is_found_and_missed_without_any_traffic(tmp_path: Path) -> None:
    with dead_port() as picker:
        pass
    settings = config(["127.0.0.1:1"], listen=picker)
    async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
        await envoy.until("cluster.homing.membership_healthy", 0)
        async with homing(settings):
            await envoy.until("cluster.homing.membership_healthy", 1)
        await envoy.until("cluster.homing.membership_healthy", 0)


@pytest.mark.parametrize(("mode", "status"), [("BUFFERED", 200), ("FULL_DUPLEX_STREAMED", 500)])
async def test_a_picker_that_dies_with_a_body_loses_it_only_in_full_duplex(
    mode: str, status: int, tmp_path: Path
) -> None:
    async with upstreams("a") as (engine,), scripted(die_with_the_body) as picker:
        settings = config([engine.endpoint], pickers=[picker.endpoint], request_body_mode=mode)
        async with (
            running_envoy(bootstrap_yaml(settings), tmp_path) as envoy,
            aiohttp.ClientSession(envoy.url) as http,
        ):
            await envoy.until("cluster.homing.membership_healthy", 1)
            async with http.post("/v1/completions", data=b"{}" * 1000) as answer:
                assert answer.status == status
            async with http.get("/v1/models") as answer:
                assert answer.status == 200
    bodies = [request["body_bytes"] for request in engine.requests]
    assert bodies == ([2000, 0] if status == 200 else [0])


async def test_the_picker_is_told_who_answered(tmp_path: Path) -> None:
    async with upstreams("a") as (engine,), scripted(carry_on) as picker:
        settings = config([engine.endpoint], pickers=[picker.endpoint])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 1)
            await get(envoy)
    (answer,) = (m for m in picker.messages if m.HasField("response_headers"))
    assert engine.endpoint in str(answer.attributes)


async def test_a_picker_can_ask_for_the_body_of_an_answer(tmp_path: Path) -> None:
    async def watch(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
        async for answer in carry_on(message):
            if answer.HasField("response_headers"):
                answer.mode_override.response_body_mode = ProcessingMode.BUFFERED
            yield answer

    async with upstreams("a") as (engine,), scripted(watch) as picker:
        settings = config([engine.endpoint], pickers=[picker.endpoint])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 1)
            await get(envoy)
    (body,) = (m.response_body for m in picker.messages if m.HasField("response_body"))
    assert json.loads(body.body)["served_by"] == "a"


@pytest.mark.parametrize("asks", [False, True], ids=["by configuration", "when asked"])
async def test_envoy_waits_for_a_slow_picker(asks: bool, tmp_path: Path) -> None:
    async def slow(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
        if message.HasField("request_headers"):
            if asks:
                yield ProcessingResponse(override_message_timeout=timedelta(seconds=9))
            await asyncio.sleep(0.5)  # more than the 0.2 s of Envoy's default
        async for answer in carry_on(message):
            yield answer

    configured_ms = 200 if asks else 20_000
    async with upstreams("a") as (engine,), scripted(slow) as picker:
        settings = config(
            [engine.endpoint], pickers=[picker.endpoint], message_timeout_ms=configured_ms
        )
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 1)
            await get(envoy)
    assert [m.WhichOneof("request") for m in picker.messages] == [
        "request_headers",
        "response_headers",
    ]


async def test_a_picker_that_hangs_costs_its_time_out_and_no_request(tmp_path: Path) -> None:
    async def hang(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
        await asyncio.Event().wait()
        async for answer in carry_on(message):
            yield answer

    async with upstreams("a") as (engine,), scripted(hang) as picker:
        settings = config([engine.endpoint], pickers=[picker.endpoint], message_timeout_ms=200)
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 1)
            await get(envoy)


async def test_a_picker_that_died_a_moment_ago_is_replaced_by_another(tmp_path: Path) -> None:
    async with upstreams("a") as (engine,), scripted(carry_on) as one, scripted(carry_on) as other:
        settings = config([engine.endpoint], pickers=[one.endpoint, other.endpoint])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 2)
            await one.server.stop(None)
            await asyncio.gather(*(get(envoy) for _ in range(20)))
    asked = [m for m in one.messages + other.messages if m.HasField("request_headers")]
    assert len(asked) == 20


async def test_a_picker_that_refuses_is_replaced_by_another(tmp_path: Path) -> None:
    async def refuse(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
        if message:
            raise ConnectionError("refused")
        yield ProcessingResponse()

    async with upstreams("a") as (engine,), scripted(refuse) as one, scripted(carry_on) as other:
        settings = config([engine.endpoint], pickers=[one.endpoint, other.endpoint])
        async with running_envoy(bootstrap_yaml(settings), tmp_path) as envoy:
            await envoy.until("cluster.homing.membership_healthy", 2)
            await asyncio.gather(*(get(envoy) for _ in range(20)))
    assert one.messages
    assert sum(m.HasField("request_headers") for m in other.messages) == 20


async def get(envoy: Envoy) -> None:
    async with aiohttp.ClientSession(envoy.url) as http, http.get("/v1/models") as answer:
        assert answer.status == 200
