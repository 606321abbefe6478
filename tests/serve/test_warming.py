"""Warm-up against the simulated engine, which counts what it computes as vLLM does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from extproc.config import Config, Instance, Model, Pool, WarmUp
from extproc.demo.engine import DEMO_MODEL, DEMO_TOKENIZER, EngineSettings
from extproc.demo.engine import serving as engine_serving
from extproc.demo.stack import _free_ports
from extproc.serve import App
from extproc.terms import Endpoint, InstanceId
from tests.serve.proxy import Exchange, chat, config, endpoints, sample, serving

SYSTEM = {"role": "system", "content": "You know all the harbours of the old world. " * 40}
QUICK = EngineSettings(prefill_tokens_per_s=1e9, request_ms=0.0, decode_ms=0.1)
NOW = WarmUp(tokens_per_s=1e9)


def body(question: str, **more: Any) -> bytes:
    said = [SYSTEM, {"role": "user", "content": question}]
    return chat("", model=DEMO_MODEL, messages=said, max_tokens=2, **more)


def settings(ports: list[int], warm_up: WarmUp | None = NOW, **more: Any) -> Config:
    pool = Pool(
        name="test",
        models=(Model(name=DEMO_MODEL, tokenizer=DEMO_TOKENIZER),),
        instances=tuple(
            Instance(name=InstanceId(f"e{port}"), endpoint=Endpoint(f"127.0.0.1:{port}"))
            for port in ports
        ),
        warm_up=warm_up,
        **more,
    )
    return config(pools=(pool,))


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[int]]:
    ports = _free_ports(count)
    running = [engine_serving(replace(QUICK, port=port, name=f"e{port}")) for port in ports]
    for each in running:
        await each.__aenter__()
    try:
        yield ports
    finally:
        for each in running:
            await each.__aexit__(None, None, None)


async def asked(channel: Any, data: bytes) -> str:
    """Picked for, and answered as if an engine had."""
    exchange = Exchange(channel)
    await exchange.headers()
    (there, *_) = endpoints(await exchange.body(data))
    await exchange.answer(200, served=there)
    await exchange.end()
    return there


async def cached_tokens(port: int, data: bytes) -> int:
    """What the engine itself says of a request."""
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with http.post(url, data=data, headers={"content-type": "application/json"}) as said:
            usage = (await said.json())["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def until(app: App, outcome: str, count: int) -> None:
    async with asyncio.timeout(30):
        while sample(app, "homing_prefetches_total", pool="test", outcome=outcome) < count:
            await asyncio.sleep(0.02)


async def make_hot(app: App, channel: Any, **more: Any) -> None:
    """Several conversations begin with the same system prompt."""
    for number in range(6):
        await asked(channel, body(f"Number {number}?", **more))
        await asyncio.sleep(0.05)  # the ids are read beside the picks
    async with asyncio.timeout(30):
        while not app._warming._of["test"].kept:
            await asked(channel, body("And another?", **more))
            await asyncio.sleep(0.05)


async def test_a_new_instance_has_the_hot_prefix_before_its_first_request() -> None:
    async with engines(2) as (old, new), serving(settings([old])) as (app, channel):
        await make_hot(app, channel)
        await app.take(settings([old, new]))
        await until(app, "done", 1)
        known = await cached_tokens(new, body("What of Genoa?"))
        assert known > 300
        index = app.pools[0].index
        assert index.held_blocks(InstanceId(f"e{new}")) * 16 == known
        assert app.pools[0].load.in_flight == 0


async def test_a_tenants_prefix_is_computed_under_its_salt() -> None:
    async with engines(2) as (old, new), serving(settings([old])) as (app, channel):
        await make_hot(app, channel, cache_salt="tenant")
        await app.take(settings([old, new]))
        await until(app, "done", 1)
        assert await cached_tokens(new, body("Genoa?")) == 0
        assert await cached_tokens(new, body("Genoa?", cache_salt="tenant")) > 300


async def test_without_it_nothing_is_counted_kept_or_sent() -> None:
    async with engines(2) as (old, new), serving(settings([old], None)) as (app, channel):
        for number in range(6):
            await asked(channel, body(f"Number {number}?"))
        await app.take(settings([old, new], None))
        await asyncio.sleep(0.5)  # more than a look
        assert not app._warming._of
        assert await cached_tokens(new, body("What of Genoa?")) == 0


async def test_a_prefix_that_is_too_long_is_left_out() -> None:
    async with engines(1) as (old,), serving(settings([old], WarmUp(max_tokens=64))) as both:
        app, channel = both
        for number in range(6):
            await asked(channel, body(f"Number {number}?"))
        assert not app._warming._of["test"].kept


async def test_a_busy_pool_is_left_alone() -> None:
    async with engines(2) as (old, new), serving(settings([old])) as (app, channel):
        await make_hot(app, channel)
        app.pools[0].outlook.utilisation.at = lambda *_: 0.9  # type: ignore[method-assign]
        await app.take(settings([old, new]))
        await asyncio.sleep(0.6)
        assert await cached_tokens(new, body("What of Genoa?")) == 0


async def test_an_engine_that_refuses_is_counted_and_nothing_is_believed_of_it(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    warm_up = WarmUp(tokens_per_s=1e9, api_key_file=key)
    async with engines(1) as (old,), serving(settings([old], warm_up)) as (app, channel):
        await make_hot(app, channel)
        (nobody,) = _free_ports(1)
        listed = settings([old, nobody], warm_up, metrics="off")
        await app.take(listed)
        await until(app, "failed", 1)
        assert app.pools[0].index.held_blocks(InstanceId(f"e{nobody}")) == 0
        assert app.pools[0].load.in_flight == 0


@pytest.mark.parametrize("size", [1, 3])
async def test_ids_are_kept_of_so_many_prefixes_and_no_more(size: int) -> None:
    warm_up = WarmUp(prefixes=size)
    async with engines(1) as (old,), serving(settings([old], warm_up)) as (app, channel):
        for number in range(5):
            for turn in range(6):
                await asked(channel, body(f"{turn}?", cache_salt=f"salt {number}"))
                await asyncio.sleep(0.02)
        warmed = app._warming._of["test"]
        assert len(warmed.kept) <= size
