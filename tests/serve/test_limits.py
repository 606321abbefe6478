"""Every limit, at it and beyond it: a request beyond one is routed by load, never refused."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from grpc.aio import Channel

from extproc.config import Config, Limits
from extproc.demo.stack import _free_ports
from extproc.serve import App
from extproc.serve.depth import MOST_TOKENS, deeper_than
from tests.serve.proxy import LONG, Exchange, ask, chat, config, picked, sample, serving

MIB = 1024 * 1024
DUPLEX = "FULL_DUPLEX_STREAMED"


def limited(**limits: Any) -> Config:
    return config(limits=Limits(**{"pick_timeout_ms": 20_000, **limits}))


def by_load(app: App, reason: str) -> float:
    return sample(app, "homing_picks_total", pool="test", why="load", reason=reason)


def looked_up(app: App) -> float:
    return sample(app, "homing_picks_total", pool="test", why="new", reason="")


def chat_of(size: int) -> bytes:
    """A chat body of exactly so many bytes."""
    return chat("a" * (size - len(chat(""))))


@pytest.mark.parametrize(("size", "known"), [(5_000, True), (5_001, False)])
@pytest.mark.parametrize("mode", ["BUFFERED", DUPLEX])
async def test_a_body_above_its_limit_is_not_read(mode: str, size: int, known: bool) -> None:
    async with serving(limited(max_body_bytes=5_000)) as (app, channel):
        exchange = Exchange(channel, mode)
        await exchange.send_headers()
        if mode == "BUFFERED":
            await exchange.read()
        await exchange.chunk(chat_of(size), end=True)
        assert picked(await exchange.read())
        await exchange.call.done_writing()
        assert (looked_up(app), by_load(app, "body_not_seen")) == ((1, 0) if known else (0, 1))


async def test_a_body_of_32_mib_is_read_and_one_of_more_still_routed() -> None:
    async with serving() as (app, channel):
        for size in (32 * MIB, 32 * MIB + 1, 60 * MIB):
            exchange = Exchange(channel)
            await exchange.headers("/v1/unknown")
            assert picked(await exchange.body(b"x" * size))
            await exchange.end()
        for size, seen in ((32 * MIB, 0), (32 * MIB + 1, 1)):
            exchange = Exchange(channel)
            await exchange.headers()
            # A string of one letter is one piece for the tokenizer; what counts is who reads it.
            body = b'{"model": "unknown", "prompt": ["' + b"a " * (size // 2)
            assert picked(await exchange.body(body[: size - 3] + b'"]}'))
            await exchange.end()
            assert by_load(app, "body_not_seen") == seen


async def test_streams_above_their_limit_are_routed_by_load_until_others_end() -> None:
    async with serving(limited(max_streams=2)) as (app, channel):
        first, _ = await ask(channel, chat(LONG + "1"))
        second, _ = await ask(channel, chat(LONG + "2"))
        assert by_load(app, "max_streams") == 0
        third, _ = await ask(channel, chat(LONG + "3"))
        assert by_load(app, "max_streams") == 1
        for exchange in (first, second, third):
            await exchange.end()
        fourth, _ = await ask(channel, chat(LONG + "4"))
        await fourth.end()
        assert by_load(app, "max_streams") == 1


async def test_headers_above_their_limit_are_routed_by_load() -> None:
    async with serving(limited(max_header_bytes=1_000)) as (app, channel):
        for name, refused in (("x" * 900, 0), ("x" * 1_000, 1)):
            exchange = Exchange(channel)
            await exchange.headers(more={name: ""})
            assert picked(await exchange.body(chat(LONG)))
            await exchange.end()
            assert by_load(app, "max_header_bytes") == refused


@pytest.mark.parametrize(("depth", "reason"), [(200, ""), (100_000, "json_too_deep")])
async def test_json_nested_too_deeply_is_routed_by_load(depth: int, reason: str) -> None:
    nested = b"[" * depth + b"]" * depth
    body = chat(LONG)[:-1] + b', "metadata": ' + nested + b"}"
    async with serving() as (app, channel):
        exchange, _ = await ask(channel, body)
        await exchange.end()
        assert by_load(app, "json_too_deep") == (1 if reason else 0)


@pytest.mark.parametrize(("depth", "too_deep"), [(20, False), (21, True)])
async def test_json_at_its_depth_is_looked_up_and_beyond_it_routed_by_load(
    depth: int, too_deep: bool
) -> None:
    # The body's own object is one level; brackets inside a text are none.
    nested = b"[" * (depth - 1) + b"]" * (depth - 1)
    body = chat(LONG + "[{" * 100)[:-1] + b', "metadata": ' + nested + b"}"
    async with serving(limited(max_json_depth=20)) as (app, channel):
        exchange, _ = await ask(channel, body)
        await exchange.end()
        assert by_load(app, "json_too_deep") == int(too_deep)
        assert looked_up(app) == int(not too_deep)


def test_a_body_of_too_many_brackets_is_not_looked_through_for_ever() -> None:
    assert deeper_than(b"[" + b"[]," * MOST_TOKENS + b"[]]", 10)
    assert not deeper_than(b"[" + b"[]," * 1_000 + b"[]]", 10)


async def hold(channel: Channel, data: bytes) -> Exchange:
    """A request whose body does not end."""
    exchange = Exchange(channel, DUPLEX)
    await exchange.send_headers("/v1/files")
    await exchange.chunk(data)
    return exchange


async def until_held(app: App, count: int) -> None:
    async with asyncio.timeout(30):
        while app.processor.held_bytes != count:
            await asyncio.sleep(0.001)


async def test_when_all_hold_too_much_the_largest_goes_on_without_a_pick() -> None:
    async with serving(limited(max_held_bytes=1_000)) as (app, channel):
        large = await hold(channel, b"a" * 700)
        await until_held(app, 700)
        small = await hold(channel, b"b" * 300)
        await until_held(app, 1_000)
        assert sample(app, "homing_released_total", reason="max_held_bytes") == 0
        await small.chunk(b"b")
        await until_held(app, 301)
        assert sample(app, "homing_released_total", reason="max_held_bytes") == 1
        headers, chunk = await large.read(), await large.read()
        assert headers.HasField("request_headers")
        assert not headers.HasField("dynamic_metadata")
        streamed = chunk.request_body.response.body_mutation.streamed_response
        assert streamed.body == b"a" * 700
        await small.chunk(b"", end=True)
        assert picked(await small.read())
        await until_held(app, 0)
        large.call.cancel()
        small.call.cancel()


async def test_a_body_that_does_not_come_in_goes_on_without_a_pick() -> None:
    async with serving(limited(hold_timeout_ms=50)) as (app, channel):
        exchange = await hold(channel, b'{"model"')
        headers, chunk = await exchange.read(), await exchange.read()
        assert not headers.HasField("dynamic_metadata")
        assert chunk.request_body.response.body_mutation.streamed_response.body == b'{"model"'
        assert sample(app, "homing_released_total", reason="hold_timeout") == 1
        assert sample(app, "homing_hold_seconds_count") == 1
        # What still comes is passed on at once.
        await exchange.chunk(b": 1}", end=True)
        rest = await exchange.read()
        assert rest.request_body.response.body_mutation.streamed_response.body == b": 1}"
        exchange.call.cancel()


async def test_open_streams_are_shown_by_how_far_they_are() -> None:
    (port,) = _free_ports(1)
    settings = config(admin=f"127.0.0.1:{port}")
    async with serving(settings) as (app, channel), ClientSession() as http:
        holding = await hold(channel, b"{")
        await until_held(app, 1)
        placed, _ = await ask(channel, chat(LONG))
        async with http.get(f"http://127.0.0.1:{port}/metrics") as page:
            text = await page.text()
        assert 'homing_open_streams{state="request_holding"} 1.0' in text
        assert 'homing_open_streams{state="answer_idle"} 1.0' in text
        await placed.end()
        holding.call.cancel()


async def test_an_index_above_its_bound_forgets_and_says_so() -> None:
    (port,) = _free_ports(1)
    pool = config().pools[0].model_copy(update={"index_bytes": 24 * 30})
    settings = config(admin=f"127.0.0.1:{port}", pools=(pool,))
    async with serving(settings) as (app, channel), ClientSession() as http:
        for number in range(4):
            exchange, _ = await ask(channel, chat(f"{number} {LONG}"))
            await exchange.end()
        assert app.pools[0].index.stats().held <= 30
        async with http.get(f"http://127.0.0.1:{port}/metrics") as page:
            text = await page.text()
        assert 'homing_index_evicted_blocks{pool="test",reason="pool"}' in text


async def test_a_tenant_above_its_bound_forgets_its_own() -> None:
    changes = {"tenant_bytes": 24 * 30, "tenant_header": "x-tenant"}
    pool = config().pools[0].model_copy(update=changes)
    async with serving(config(pools=(pool,))) as (app, channel):

        async def turn(tenant: str, words: str) -> None:
            exchange = Exchange(channel)
            await exchange.headers(more={"x-tenant": tenant})
            assert picked(await exchange.body(chat(words)))
            await exchange.end()

        await turn("small", LONG)
        for number in range(4):
            await turn("large", f"{number} {LONG}")
        await turn("small", LONG)
        assert sample(app, "homing_picks_total", pool="test", why="home", reason="") == 1
        assert app.pools[0].index.stats().evicted["tenant"] > 0
