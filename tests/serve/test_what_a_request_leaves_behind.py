"""Facts and load of a request, from its pick to its answer's end."""

import asyncio
from collections.abc import Callable

from grpc.aio import Channel

from extproc.serve import App
from extproc.terms import InstanceId
from tests.serve.proxy import ENDPOINTS, LONG, ask, chat, sample, serving


def blocks(app: App, name: str) -> int:
    return app.pools[0].index.held_blocks(InstanceId(name))


async def until(true: Callable[[], bool]) -> None:
    """What follows an answer of Homing's happens after it was sent."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.001)


async def home(app: App, channel: Channel) -> str:
    """Who is picked for the long prompt now, as far as the index knows."""
    exchange, name = await ask(channel, chat(LONG))
    await exchange.end()
    return name


async def test_a_picked_instance_is_expected_to_hold_the_prompt_from_the_pick_on() -> None:
    async with serving() as (app, channel):
        first, name = await ask(channel, chat(LONG))
        assert blocks(app, name) > 20
        second, again = await ask(channel, chat(LONG + "And then?"))
        assert again == name
        await first.end()
        await second.end()


async def test_a_request_is_in_flight_until_its_stream_ends() -> None:
    async with serving() as (app, channel):
        exchange, _ = await ask(channel, chat(LONG))
        assert app.pools[0].load.in_flight == 1
        await exchange.answer(200)
        assert app.pools[0].load.in_flight == 1
        await exchange.end()
        assert app.pools[0].load.in_flight == 0
        assert app.processor.open_streams == 0


async def test_a_client_that_hangs_up_leaves_no_load() -> None:
    async with serving() as (app, channel):
        exchange, _ = await ask(channel, chat(LONG))
        exchange.call.cancel()
        await until(lambda: app.processor.open_streams == 0)
        assert app.pools[0].load.in_flight == 0


async def test_a_request_that_the_engine_failed_leaves_no_blocks() -> None:
    async with serving() as (app, channel):
        exchange, name = await ask(channel, chat(LONG))
        await exchange.answer(500)
        await exchange.end()
        assert blocks(app, name) == 0
        assert sample(app, "homing_answers_total", pool="test", status="5xx") == 1


async def test_a_failed_turn_leaves_the_blocks_of_the_turns_before_it() -> None:
    async with serving() as (app, channel):
        first, name = await ask(channel, chat(LONG))
        await first.answer(200)
        await first.end()
        before = blocks(app, name)
        second, again = await ask(channel, chat(LONG * 2))
        assert again == name
        assert blocks(app, name) > before
        await second.answer(503)
        await second.end()
        assert blocks(app, name) == before


async def test_what_another_instance_served_is_held_there_and_counts_there() -> None:
    async with serving() as (app, channel):
        exchange, name = await ask(channel, chat(LONG))
        held = blocks(app, name)
        other = next(one for one in ENDPOINTS if one != name)
        await exchange.answer(200, served=ENDPOINTS[other])
        await until(lambda: blocks(app, other) > 0)
        assert (blocks(app, name), blocks(app, other)) == (0, held)
        assert sample(app, "homing_rerouted_total", pool="test") == 1
        instances = app.pools[0].describe(0.0)["instances"]
        assert {one["name"]: one["in_flight"] for one in instances}[other] == 1  # type: ignore[attr-defined]
        await exchange.end()
        assert app.pools[0].load.in_flight == 0
        assert await home(app, channel) == other


async def test_an_answer_from_the_picked_endpoint_is_no_reroute() -> None:
    async with serving() as (app, channel):
        exchange, name = await ask(channel, chat(LONG))
        await exchange.answer(200, served=ENDPOINTS[name])
        await exchange.end()
        assert sample(app, "homing_rerouted_total", pool="test") == 0
        assert await home(app, channel) == name
