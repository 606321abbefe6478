"""How a process of Homing ends: real signals, real gRPC clients, real Envoy.

Where a test depends on one time, the others are minutes: waiting for the wrong one fails it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.config import Config, Drain, Limits
from extproc.serve import App
from extproc.serve.server import EXT_PROC, READINESS
from proto_gen.ext_proc_pb2 import ProcessingResponse
from tests.serve.process import draining, readiness, running, started
from tests.serve.proxy import LONG, Exchange, ask, chat, config, endpoints, picked, serving
from tests.serve.test_health import NOT_SERVING, SERVING, status

MINUTES = 600
OK = grpc.StatusCode.OK


def times(delay_s: float = 0, timeout_s: float = MINUTES) -> dict[str, float]:
    """Refuses new streams at once, and waits long for the open ones, if not said."""
    return {"delay_s": delay_s, "timeout_s": timeout_s}


def settings(**changed: float) -> Config:
    limits = Limits(pick_timeout_ms=20_000, hold_timeout_ms=MINUTES * 1000)
    return config(drain=Drain(**times(**changed)), limits=limits)


@asynccontextmanager
async def drained(
    **changed: float,
) -> AsyncIterator[tuple[App, grpc.aio.Channel, Callable[[], None]]]:
    """A Homing in this process, and what begins its drain, which ends with the block."""
    begun: list[asyncio.Task[None]] = []
    async with serving(settings(**changed)) as (app, channel):

        def begin() -> None:
            begun.append(asyncio.create_task(app.drain(asyncio.Event())))

        yield app, channel, begin
        async with asyncio.timeout(MINUTES / 10):
            await begun[0]
        assert app.processor.open_streams == 0


async def left(exchange: Exchange) -> grpc.StatusCode:
    """How Homing ended a stream that its proxy has not ended."""
    assert await exchange.call.read() is grpc.aio.EOF
    code = await exchange.call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def refused(channel: grpc.aio.Channel) -> None:
    """Wait until new streams are."""
    request = health_pb2.HealthCheckRequest()
    async with asyncio.timeout(60):
        while await health_pb2_grpc.HealthStub(channel).Check(request).code() is OK:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("second", [SIGTERM, SIGINT])
async def test_readiness_is_withdrawn_while_requests_are_still_taken_until_a_second_signal(
    tmp_path: Path, second: Signals
) -> None:
    async with (
        running(tmp_path, drain=times(delay_s=MINUTES)) as homing,
        homing.channel() as channel,
    ):
        _, name = await ask(channel, chat(LONG))
        await draining(homing)
        assert await readiness(homing) == 503
        for service in READINESS:
            assert await status(channel, service) == NOT_SERVING
        assert await status(channel, "liveness") == SERVING
        async with homing.channel() as new:
            _, again = await ask(new, chat(LONG))
        assert again == name
        homing.process.send_signal(second)
        assert await homing.ended() == 0


async def test_an_open_request_gets_its_pick_and_no_new_one_is_taken(tmp_path: Path) -> None:
    async with running(tmp_path, drain=times()) as homing, homing.channel() as channel:
        waiting = Exchange(channel)
        await waiting.headers()
        homing.process.send_signal(SIGTERM)
        await refused(channel)
        assert picked(await waiting.body(chat(LONG)))
        reply = await waiting.answer(200)
        assert b"x-homing-why" in reply.SerializeToString()
        assert await left(waiting) is OK
        assert await homing.ended() == 0


async def test_the_second_signal_also_ends_the_wait_for_open_requests(tmp_path: Path) -> None:
    async with running(tmp_path, drain=times()) as homing, homing.channel() as channel:
        await Exchange(channel).headers()
        homing.process.send_signal(SIGTERM)
        await refused(channel)
        homing.process.send_signal(SIGTERM)
        assert await homing.ended() == 0


async def test_the_stream_of_a_long_answer_is_left_at_once() -> None:
    async with drained() as (_, channel, begin):
        exchange, _ = await ask(channel, chat(LONG))
        await exchange.answer(200)
        begin()
        assert await left(exchange) is OK


async def test_a_request_that_takes_too_long_is_left_without_a_pick() -> None:
    async with drained(timeout_s=0.1) as (_, channel, begin):
        waiting = Exchange(channel)
        await waiting.headers()
        begin()
        assert await left(waiting) is OK


async def test_a_held_body_goes_on_before_its_stream_is_left() -> None:
    async with drained(timeout_s=0.1) as (app, channel, begin):
        held = await half_a_body(app, channel)
        begin()
        headers = await held.read()
        assert headers.WhichOneof("response") == "request_headers"
        assert not headers.request_headers.response.header_mutation.set_headers
        assert streamed(await held.read()) == (FIRST, False)
        await held.chunk(LAST, end=True)
        assert streamed(await held.read()) == (LAST, True)
        assert await left(held) is OK


async def test_a_body_that_still_comes_when_time_is_up_ends_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A clean close would send half of it on, and call it whole."""
    async with serving(settings(timeout_s=0.1)) as (app, channel):
        held = await half_a_body(app, channel)
        draining = asyncio.create_task(app.drain(asyncio.Event()))
        await held.read()
        assert streamed(await held.read()) == (FIRST, False)
        await draining
        await app.stop()
        assert await held.call.code() is not OK
    assert "cut 1 streams" in caplog.text


BODY = chat(LONG)
FIRST, LAST = BODY[:100], BODY[100:]


async def half_a_body(app: App, channel: grpc.aio.Channel) -> Exchange:
    """A request whose body Homing holds, and of which more is to come."""
    held = Exchange(channel, "FULL_DUPLEX_STREAMED")
    await held.send_headers()
    await held.chunk(FIRST)
    async with asyncio.timeout(60):
        while app.processor.held_bytes < len(FIRST):
            await asyncio.sleep(0.001)
    return held


def streamed(reply: ProcessingResponse) -> tuple[bytes, bool]:
    chunk = reply.request_body.response.body_mutation.streamed_response
    return chunk.body, chunk.end_of_stream


async def test_a_pick_under_way_is_finished_and_its_body_with_it() -> None:
    async with drained() as (app, channel, begin):
        held = await half_a_body(app, channel)
        begin()
        await refused(channel)
        await held.chunk(LAST, end=True)
        assert picked(await held.read())
        assert streamed(await held.read()) == (FIRST, False)
        assert streamed(await held.read()) == (LAST, True)
        await held.answer(200)
        assert await left(held) is OK


async def test_who_watches_the_health_hears_of_the_drain_and_does_not_hold_it_up() -> None:
    async with serving(settings()) as (app, channel):
        request = health_pb2.HealthCheckRequest(service=EXT_PROC)
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(app.drain(asyncio.Event()))
        assert (await watch.read()).status == NOT_SERVING
        async with asyncio.timeout(60):
            await draining
            await app.stop()


async def test_a_homing_that_was_never_ready_waits_for_no_proxy_to_notice() -> None:
    app = App(settings(delay_s=MINUTES))
    await app._server.start()
    await app.drain(asyncio.Event())
    await app.stop()


async def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    pool = {
        "name": "test",
        "models": [{"name": "m", "tokenizer": "bad"}],
        "instances": [{"endpoint": "10.0.0.1:8000"}],
        "metrics": "off",
    }
    async with started(tmp_path, pools=[pool]) as homing:
        assert await homing.ended() == 2
        assert "homing.yaml: pools[0].models[0]: " in homing.log.read_text()
        assert "Traceback" not in homing.log.read_text()


async def test_sighup_reloads_a_running_process(tmp_path: Path) -> None:
    async with running(tmp_path) as homing, homing.channel() as channel:
        waiting = Exchange(channel)
        await waiting.headers()
        text = homing.file.read_text()
        homing.file.write_text(text.replace("10.0.0.1", "10.0.0.9"))
        homing.process.send_signal(SIGHUP)
        async with asyncio.timeout(60):
            while "instance a at 10.0.0.9:8000" not in homing.log.read_text():
                await asyncio.sleep(0.01)
        reply = await waiting.body(chat(LONG))
        assert "10.0.0.9:8000" in endpoints(reply)
        await waiting.end()
