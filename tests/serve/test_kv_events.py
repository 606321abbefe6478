"""Homing with an engine that publishes: what the index holds is what the engine does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import aiohttp
import grpc
import pytest

from extproc.config import Config, Events, Instance
from extproc.demo.engine import EngineSettings
from extproc.demo.engine import serving as engine_serving
from extproc.demo.scheduler import VirtualEngine
from extproc.demo.stack import _free_ports
from extproc.engines.events import Fold
from extproc.index import Capacity, Cleared, Held, Source, Tier
from extproc.serve import App
from extproc.serve.kv_events import GRACE_S, QUIET_S
from extproc.serve.pool import Pool
from extproc.terms import NO_BLOCK, Endpoint, InstanceId, PackedKeys
from tests.serve.proxy import LONG, MODEL, Exchange, ask, chat, config, endpoints, sample, serving

A = InstanceId("a")
BLOCKS = 200
PREDICTED = "homing_predicted_cached_tokens_total"


@dataclass(slots=True)
class Running:
    """Homing with one engine, which requests go to directly: the pick is made and not followed."""

    app: App
    channel: grpc.aio.Channel
    engine: VirtualEngine
    http: aiohttp.ClientSession
    url: str

    @property
    def pool(self) -> Pool:
        return self.app.pools[0]

    @property
    def held(self) -> int:
        return self.pool.index.held_blocks(A)

    @property
    def live(self) -> bool:
        return A in self.pool.assured

    async def routed(self, body: bytes) -> Exchange:
        """A request up to its pick."""
        exchange = Exchange(self.channel)
        await exchange.headers()
        assert endpoints(await exchange.body(body)) == [self.url.removeprefix("http://")]
        return exchange

    async def answer(self, words: str, **more: Any) -> int:
        """Let the engine answer a chat; its cached tokens."""
        return await answered(self.http, self.url, words, **more)


async def answered(http: aiohttp.ClientSession, url: str, words: str, **more: Any) -> int:
    """Let an engine answer a chat; its cached tokens."""
    data = chat(words, max_tokens=40, **more)
    async with http.post(f"{url}/v1/chat/completions", data=data) as answer:
        usage = (await answer.json())["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def settings(endpoint: int, events: int, replay: int | None, **changes: Any) -> Config:
    (pool,) = config().pools
    one = Instance(name=A, endpoint=Endpoint(f"127.0.0.1:{endpoint}"))
    return config(
        pools=(
            pool.model_copy(
                update={
                    "instances": (one,),
                    "events": Events(port=events, replay_port=replay, **changes),
                    "capacity_blocks": BLOCKS,
                    "metrics": "off",
                }
            ),
        )
    )


def engine_at(port: int, events: int, replay: int) -> EngineSettings:
    return EngineSettings(
        port=port,
        model=MODEL,
        blocks=BLOCKS,
        prefill_tokens_per_s=1e6,
        request_ms=0,
        decode_ms=0.1,
        decode_ms_per_running=0,
        kv_events_port=events,
        kv_events_replay_port=replay,
    )


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Running]:
    ports = _free_ports(3)
    async with (
        engine_serving(engine_at(*ports)) as engine,
        serving(settings(*ports, **changes)) as (app, channel),
        aiohttp.ClientSession() as http,
    ):
        one = Running(app, channel, engine.engine, http, engine.url)
        await until(lambda: one.live)
        yield one


async def test_what_the_engine_stored_and_removed_is_what_the_index_holds() -> None:
    async with running() as one:
        for number in range(8):
            await one.answer(f"{number} {LONG}")
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        assert one.pool.index.stats().evicted == {}
        await one.http.post(f"{one.url}/reset_prefix_cache")
        await until(lambda: one.held == 0)
        removed = {"pool": "test", "what": "removed"}
        await until(lambda: sample(one.app, "homing_event_blocks_total", **removed) > 0)
        assert sample(one.app, "homing_event_streams", pool="test", state="live") == 1


async def test_events_of_a_salted_prompt_are_its_own() -> None:
    async with running() as one:
        await one.answer(LONG, cache_salt="s")
        await until(lambda: one.held == len(one.engine.cache._copies))
        for salt in ("s", "t"):
            before = sample(one.app, PREDICTED, pool="test")
            exchange = await one.routed(chat(LONG, cache_salt=salt))
            await exchange.end()
            predicted = sample(one.app, PREDICTED, pool="test") - before
            assert predicted == await one.answer(LONG, cache_salt=salt)
            assert (predicted > 300) == (salt == "s")


async def test_what_is_predicted_is_what_the_engine_then_has_cached() -> None:
    async with running() as one:
        await one.answer(LONG)
        await until(lambda: one.held == len(one.engine.cache._copies))
        before = sample(one.app, PREDICTED, pool="test")
        exchange = await one.routed(chat(LONG + "And then?"))
        await exchange.end()
        predicted = sample(one.app, PREDICTED, pool="test") - before
        assert predicted > 300
        assert predicted == await one.answer(LONG + "And then?")


async def test_a_request_that_the_engine_never_got_is_forgotten_again() -> None:
    async with running(expire_s=0.0) as one:
        exchange = await one.routed(chat(LONG))
        assert one.held > 20
        await exchange.answer(200)
        await exchange.end()
        await until(lambda: one.held == 0)
        assert sample(one.app, "homing_expired_expectations_total", pool="test") == 1


async def test_what_events_confirmed_stays_when_the_expectation_ends() -> None:
    async with running(expire_s=0.0) as one:
        exchange = await one.routed(chat(LONG))
        await one.answer(LONG)
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        await exchange.answer(200)
        await exchange.end()
        expired = "homing_expired_expectations_total"
        await until(lambda: sample(one.app, expired, pool="test") == 1)
        assert one.held == true


async def test_expectations_stay_while_the_answer_goes_on() -> None:
    async with running(expire_s=0.0) as one:
        exchange = await one.routed(chat(LONG))
        assert one.app.kv_events is not None
        one.app.kv_events.tick(monotonic() + 1000)
        assert one.held > 20
        await exchange.end()
        await until(lambda: one.held == 0)


async def test_an_engine_that_failed_a_request_keeps_what_events_confirmed() -> None:
    async with running() as one:
        exchange = await one.routed(chat(LONG))
        await one.answer(LONG)
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        await exchange.answer(500)
        await exchange.end()
        await one.answer("another one")
        await until(lambda: one.held == len(one.engine.cache._copies))


async def test_while_the_stream_is_live_the_capacity_is_only_a_bound() -> None:
    async with running() as one:
        (instance,) = one.pool.index.instances()
        assert instance.limits[Tier.GPU] == 2 * BLOCKS
        for number in range(10):
            exchange = await one.routed(chat(f"{number} {LONG}"))
            await one.answer(f"{number} {LONG}")
            await exchange.end()
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        assert one.pool.index.stats().evicted == {}


async def test_an_engine_without_a_history_is_learnt_from_what_is_routed_to_it() -> None:
    ports = _free_ports(3)
    async with engine_serving(engine_at(*ports)) as engine, aiohttp.ClientSession() as http:
        await answered(http, engine.url, LONG)
        async with serving(settings(ports[0], ports[1], None)) as (app, channel):
            one = Running(app, channel, engine.engine, http, engine.url)
            streams = {"pool": "test", "state": "partial"}
            await until(lambda: sample(app, "homing_event_streams", **streams) == 1)
            exchange = await one.routed(chat(LONG + "And then?" * 40))
            expected = one.held
            await one.answer(LONG + "And then?" * 40)
            await exchange.end()
            # The answer is held too, which no pick expected: its parents were found.
            await until(lambda: one.held > expected)
            unknown = {"pool": "test", "reason": "unknown_parent"}
            assert sample(app, "homing_event_blocks_skipped_total", **unknown) == 0


async def test_what_an_operator_cleared_comes_back_from_what_events_know() -> None:
    async with running() as one:
        await one.answer(LONG)
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        one.pool.append([Cleared(A, Source.CORRECTION)])
        assert one.held == 0
        assert one.app.kv_events is not None
        one.app.kv_events.tick(monotonic() + QUIET_S)
        await until(lambda: one.held == true)


async def test_a_fault_of_ours_ends_one_stream_which_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as one:
        with monkeypatch.context() as broken:
            broken.setattr(Fold, "apply", lambda fold, event: 1 / 0)
            await one.answer(LONG)
            errors = "homing_internal_errors_total"
            await until(lambda: sample(one.app, errors, where="kv_events") == 1)
            assert one.held == 0
        assert one.app.kv_events is not None
        one.app.kv_events.tick(monotonic() + 60)
        await until(lambda: one.held == len(one.engine.cache._copies))


async def test_what_the_index_forgot_before_the_stream_was_live_it_is_told_again() -> None:
    async with running() as one:
        await one.answer(LONG)
        true = len(one.engine.cache._copies)
        await until(lambda: one.held == true)
        assert one.app.kv_events is not None
        # As if the stream had been down for long: the capacity counts, and here there is little.
        one.pool.append([Capacity(A, Tier.GPU, 5)])
        assert one.held == 5
        one.pool.append([Capacity(A, Tier.GPU, BLOCKS)])
        one.pool.assured = frozenset()
        one.app.kv_events.tick(monotonic())
        await until(lambda: one.held == true)


async def test_where_the_stream_breaks_the_capacity_counts_again() -> None:
    ports = _free_ports(3)
    async with serving(settings(*ports)) as (app, channel), aiohttp.ClientSession() as http:
        (pool,) = app.pools
        (instance,) = pool.index.instances()
        assert instance.limits[Tier.GPU] == BLOCKS
        async with engine_serving(engine_at(*ports)) as engine:
            await until(lambda: A in pool.assured)
            assert instance.limits[Tier.GPU] == 2 * BLOCKS
            await Running(app, channel, engine.engine, http, engine.url).answer(LONG)
            await until(lambda: pool.index.held_blocks(A) == len(engine.engine.cache._copies))
        down = {"pool": "test", "state": "down"}
        await until(lambda: sample(app, "homing_event_streams", **down) == 1)
        assert instance.limits[Tier.GPU] == 2 * BLOCKS  # it may be back in a moment
        assert app.kv_events is not None
        app.kv_events.tick(monotonic() + GRACE_S)
        assert instance.limits[Tier.GPU] == BLOCKS


async def test_an_engine_that_is_started_again_is_known_to_be_empty() -> None:
    ports = _free_ports(3)
    async with serving(settings(*ports)) as (app, channel), aiohttp.ClientSession() as http:
        (pool,) = app.pools
        async with engine_serving(engine_at(*ports)) as engine:
            await Running(app, channel, engine.engine, http, engine.url).answer(LONG)
            await until(lambda: pool.index.held_blocks(A) > 20)
        async with engine_serving(engine_at(*ports)):
            await until(lambda: pool.index.held_blocks(A) == 0)
            restarts = {"pool": "test", "what": "restarts"}
            await until(lambda: sample(app, "homing_event_troubles_total", **restarts) == 1)


async def test_a_cache_that_is_empty_by_other_signs_is_cleared() -> None:
    async with running() as one:
        await one.answer(LONG)
        await until(lambda: one.held > 20)
        assert one.app.kv_events is not None
        assert one.app.kv_events.emptied("test", A)
        await until(lambda: one.held == 0)
        assert not one.app.kv_events.emptied("another pool", A)


async def test_blocks_on_the_cpu_count_as_blocks_at_their_price() -> None:
    (pool,) = config().pools
    pool = pool.model_copy(update={"events": Events(port=1), "metrics": "off"})
    async with serving(config(pools=(pool,))) as (app, channel):
        (served,) = app.pools
        exchange, first = await ask(channel, chat(LONG))
        await exchange.end()
        names = [name for name in ("a", "b", "c") if name != first]
        keys = held_keys(app)
        half = PackedKeys(keys[: len(keys) // 16 * 8])
        served.append(
            [
                Cleared(InstanceId(first), Source.EVENT),
                Held(InstanceId(names[0]), Tier.GPU, NO_BLOCK, half, Source.EVENT),
                Held(InstanceId(names[1]), Tier.CPU, NO_BLOCK, keys, Source.EVENT),
            ]
        )
        before = sample(app, PREDICTED, pool="test")
        exchange, second = await ask(channel, chat(LONG))
        await exchange.end()
        assert second == names[1]
        assert sample(app, PREDICTED, pool="test") - before == len(keys) // 8 * 16


def held_keys(app: App) -> PackedKeys:
    """The one chain that is held."""
    (edge,) = app.pools[0].index.tree.store
    return PackedKeys(bytes(edge.keys))


async def test_a_reload_follows_new_ports_and_leaves_old_ones() -> None:
    ports, others = _free_ports(3), _free_ports(3)
    async with (
        engine_serving(engine_at(*ports)) as engine,
        serving(settings(ports[0], others[1], others[2])) as (app, channel),
        aiohttp.ClientSession() as http,
    ):
        (pool,) = app.pools
        one = Running(app, channel, engine.engine, http, engine.url)
        await app.take(settings(*ports))
        await until(lambda: one.live)
        await app.take(
            config(pools=(settings(*ports).pools[0].model_copy(update={"events": None}),))
        )
        await until(lambda: not one.live)
        await one.answer(LONG)
        assert pool.index.held_blocks(A) == 0
        assert sample(app, "homing_event_streams", pool="test", state="live") == 0
