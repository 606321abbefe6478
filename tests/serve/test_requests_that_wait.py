"""Flow control: requests that wait at Homing while every instance is busy."""

import asyncio
from time import monotonic
from typing import Any

import grpc
import pytest

from extproc.config import FlowControl, Shed
from extproc.serve import App
from extproc.stream.headers import PATIENCE
from extproc.terms import InstanceId
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.serve.proxy import (
    CHAT,
    ENDPOINTS,
    LONG,
    METHOD,
    Exchange,
    chat,
    config,
    endpoints,
    sample,
)
from tests.serve.proxy import serving as _serving

RATE = 1_000.0
PATIENT = ((PATIENCE, "10"),)


def settings(**more: Any) -> Any:
    (pool,) = config().pools
    return config(pools=(pool.model_copy(update={"prefill_rate": RATE, **more}),))


def serving(**more: Any) -> Any:
    return _serving(settings(**more))


def learn(app: App) -> None:
    """Engines tell what their prefills take, as they do at every scrape."""
    for name in ENDPOINTS:
        for _ in range(60):
            app.pools[0].outlook.rates.observe(InstanceId(name), 1.0, 1, RATE)
    assert app.pools[0].outlook.rates.are_learnt


def occupy(app: App, seconds: float) -> None:
    """Let somebody else's prompt be in front everywhere."""
    for name in ENDPOINTS:
        app.pools[0].outlook.start(InstanceId(name), seconds * RATE, monotonic())


class Patient(Exchange):
    """A proxy that says that it waits, if told so."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...] = PATIENT,
        mode: str = "BUFFERED",
    ) -> None:
        super().__init__(channel, mode)
        call = channel.stream_stream(
            METHOD,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        self.call.cancel()
        self.call = call(metadata=metadata)


def asks_for_time(reply: ProcessingResponse) -> bool:
    return reply.HasField("override_message_timeout") and reply.WhichOneof("response") is None


async def asked(channel: grpc.aio.Channel, body: bytes, **more: Any) -> Patient:
    exchange = Patient(channel, **more)
    await exchange.headers(CHAT)
    await exchange.chunk(body, end=True)
    return exchange


async def until(app: App, waiting: int) -> None:
    line = app.pools[0].line
    assert line is not None
    async with asyncio.timeout(20):
        while len(line) != waiting:
            await asyncio.sleep(0.002)


async def test_a_request_waits_while_all_are_busy_and_then_has_its_pick() -> None:
    async with serving() as (app, channel):
        learn(app)
        occupy(app, 0.4)
        exchange = await asked(channel, chat(LONG))
        more_time = await exchange.read()
        assert asks_for_time(more_time)
        assert more_time.override_message_timeout.ToSeconds() == 10
        await until(app, 1)
        assert sample(app, "homing_waiting_requests", pool="test") == 1
        assert endpoints(await exchange.read())
        assert sample(app, "homing_waiting_requests", pool="test") == 0
        assert sample(app, "homing_stage_seconds_count", stage="wait") == 1
        assert app.pools[0].load.in_flight == 4
        await exchange.end()


async def test_the_shortest_prefill_is_picked_for_first() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=9)) as (app, channel):
        learn(app)
        (there, *others) = ENDPOINTS
        for name in others:
            app.pools[0].outlook.start(InstanceId(name), 3_600 * RATE, monotonic())
        running = await asked(channel, chat(LONG * 60))
        assert endpoints(await running.read())[0] == ENDPOINTS[there]
        long = await asked(channel, chat("Longer. " + LONG * 60))
        await until(app, 1)
        short = await asked(channel, chat("Shorter. " + LONG * 30))
        await until(app, 2)
        await running.end()
        for exchange, waiting in ((short, 1), (long, 0)):
            assert asks_for_time(await exchange.read())
            assert endpoints(await exchange.read())[0] == ENDPOINTS[there]
            await until(app, waiting)
            await exchange.end()


@pytest.mark.parametrize(
    ("metadata", "learnt", "changes"),
    [
        ((), True, {}),
        (((PATIENCE, "2.4"),), True, {}),
        (((PATIENCE, "long"),), True, {}),
        (PATIENT, False, {}),
        (PATIENT, True, {"flow_control": "off"}),
    ],
    ids=[
        "a proxy that says nothing",
        "one that waits for less than the limit and its margin",
        "one that says no number",
        "engines that do not tell how long prefills take",
        "off",
    ],
)
async def test_nothing_waits_for(
    metadata: tuple[tuple[str, str], ...], learnt: bool, changes: dict[str, Any]
) -> None:
    async with serving(**changes) as (app, channel):
        if learnt:
            learn(app)
        occupy(app, 30.0)
        exchange = await asked(channel, chat(LONG), metadata=metadata)
        assert endpoints(await exchange.read())


async def test_nothing_waits_while_an_instance_is_free() -> None:
    async with serving() as (app, channel):
        learn(app)
        for name in list(ENDPOINTS)[1:]:
            app.pools[0].outlook.start(InstanceId(name), 30 * RATE, monotonic())
        exchange = await asked(channel, chat(LONG))
        assert endpoints(await exchange.read())[0] == next(iter(ENDPOINTS.values()))


async def test_nobody_waits_longer_than_the_limit() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=0.1)) as (app, channel):
        learn(app)
        occupy(app, 3_600.0)
        exchange = await asked(channel, chat(LONG))
        assert asks_for_time(await exchange.read())
        assert endpoints(await exchange.read())


async def test_what_would_be_refused_after_its_wait_is_refused_before_it() -> None:
    waits = FlowControl(max_wait_s=9)
    async with serving(flow_control=waits, shed=Shed(max_wait_s=5)) as (app, channel):
        learn(app)
        occupy(app, 60.0)
        exchange = await asked(channel, chat(LONG))
        assert (await exchange.read()).immediate_response.status.code == 429


async def test_in_a_mode_without_time_outs_no_time_is_asked_for() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=0.1)) as (app, channel):
        learn(app)
        occupy(app, 3_600.0)
        exchange = Patient(channel, mode="FULL_DUPLEX_STREAMED")
        await exchange.send_headers(CHAT)
        await exchange.chunk(chat(LONG), end=True)
        first = await exchange.read()
        assert first.WhichOneof("response") == "request_headers"


async def test_an_answer_that_ends_early_lets_the_next_go_early() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=9)) as (app, channel):
        running = await asked(channel, chat(LONG * 60))
        (there, *_) = endpoints(await running.read())
        learn(app)
        for name, endpoint in ENDPOINTS.items():
            if endpoint != there:
                app.pools[0].outlook.start(InstanceId(name), 3_600 * RATE, monotonic())
        exchange = await asked(channel, chat("Hi"))
        assert asks_for_time(await exchange.read())
        await until(app, 1)
        await running.end()
        assert endpoints(await exchange.read())[0] == there


async def test_who_goes_away_while_it_waits_leaves_nothing_behind() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=9)) as (app, channel):
        learn(app)
        occupy(app, 3_600.0)
        exchange = await asked(channel, chat(LONG))
        assert asks_for_time(await exchange.read())
        await until(app, 1)
        exchange.call.cancel()
        await until(app, 0)
        assert app.pools[0].load.in_flight == len(ENDPOINTS)


async def test_a_pool_whose_instances_all_leave_lets_who_waits_go_on_without_a_pick() -> None:
    async with serving(flow_control=FlowControl(max_wait_s=0.2)) as (app, channel):
        learn(app)
        occupy(app, 3_600.0)
        exchange = await asked(channel, chat(LONG))
        assert asks_for_time(await exchange.read())
        app.pools[0].members.set_instances(())
        reply = await exchange.read()
        assert reply.immediate_response.status.code == 503
