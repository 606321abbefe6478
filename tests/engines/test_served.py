"""Discovery, metrics and answers at work in a served Homing: what is picked, and what is known."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from extproc.config import Config, FileDiscovery, Instance, Limits, Model, Pool, Scraping
from extproc.demo.engine import DEMO_TOKENIZER, EngineSettings
from extproc.demo.engine import serving as engine
from extproc.engines import Instance as Found
from extproc.engines import State
from extproc.serve import App
from extproc.terms import Endpoint, InstanceId
from tests.engines.pages import together, vllm
from tests.engines.server import MetricsServer, metrics_server, page
from tests.serve.proxy import LONG, MODEL, Exchange, chat, endpoints, sample, serving

QUICK = Scraping(busy_ms=20, idle_ms=20)


def config(*servers: str, **changes: Any) -> Config:
    """One pool with these engines, looked at often."""
    pool: dict[str, Any] = {
        "name": "test",
        "models": (Model(name=MODEL, tokenizer=DEMO_TOKENIZER),),
        "metrics": QUICK,
        **changes,
    }
    if servers:
        pool["instances"] = tuple(Instance(endpoint=Endpoint(one)) for one in servers)
    return Config(
        listen="127.0.0.1:0",
        pools=(Pool(**pool),),
        limits=Limits(pick_timeout_ms=20_000),
        admin="127.0.0.1:0",
    )


async def until(true: Callable[[], object]) -> None:
    """Wait for what a scrape or a look at a file brings."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[MetricsServer, MetricsServer]]:
    async with (
        metrics_server(page(vllm())) as one,
        metrics_server(page(vllm())) as other,
    ):
        yield one, other


def known(app: App) -> bool:
    """Whether all engines have told their load."""
    pool = app.pools[0]
    return all(pool.members.conditions.of(one.id).told for one in pool.instances)


def blocks(app: App, endpoint: str) -> int:
    return app.pools[0].index.held_blocks(InstanceId(endpoint))


async def ask(channel: grpc.aio.Channel, words: str = LONG) -> tuple[Exchange, list[str]]:
    """A request up to its pick."""
    exchange = Exchange(channel)
    await exchange.headers()
    return exchange, endpoints(await exchange.body(chat(words)))


async def picks(channel: grpc.aio.Channel, count: int = 12, words: str = LONG) -> set[str]:
    """Who is picked first for so many different requests."""
    first = set()
    for number in range(count):
        exchange, order = await ask(channel, f"{number} {words}")
        first.add(order[0])
        await exchange.answer(200)
        await exchange.end()
    return first


class TestCaches:
    async def test_an_engines_capacity_is_read_from_its_metrics(self) -> None:
        async with (
            metrics_server(page(vllm(blocks=15))) as one,
            serving(config(one.endpoint)) as (app, channel),
        ):
            await until(lambda: known(app))
            await picks(channel, 3)
            assert blocks(app, one.endpoint) == 14, "one block is vLLM's own"

    async def test_blocks_of_half_the_size_are_counted_in_the_pools(self) -> None:
        async with (
            metrics_server(page(vllm(blocks=25, block_size=8))) as one,
            serving(config(one.endpoint)) as (app, channel),
        ):
            await until(lambda: known(app))
            await picks(channel, 3)
            assert blocks(app, one.endpoint) == 12

    async def test_a_change_of_the_capacity_counts(self) -> None:
        async with (
            metrics_server(page(vllm(blocks=1000))) as one,
            serving(config(one.endpoint)) as (app, channel),
        ):
            await until(lambda: known(app))
            await picks(channel, 3)
            assert blocks(app, one.endpoint) > 60
            one.answer = page(vllm(blocks=11))
            await until(lambda: blocks(app, one.endpoint) == 10)

    async def test_without_metrics_what_is_configured_counts(self) -> None:
        async with metrics_server(page(b"none\n")) as one:
            settings = config(one.endpoint, capacity_blocks=17)
            async with serving(settings) as (app, channel):
                await until(lambda: known(app))
                await picks(channel, 3)
                assert blocks(app, one.endpoint) == 17

    async def test_blocks_of_another_size_are_routed_by_load_and_said_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with two_engines() as (one, other):
            one.answer = page(vllm(block_size=24))
            async with serving(config(one.endpoint, other.endpoint)) as (app, channel):
                await until(lambda: known(app))
                assert await picks(channel) == {one.endpoint, other.endpoint}
                await until(lambda: len(one.requests) > 10)
                assert blocks(app, one.endpoint) == 0
                assert blocks(app, other.endpoint) > 0
        said = [each.getMessage() for each in caplog.records if "no multiple" in each.getMessage()]
        assert len(said) == 1
        assert f"{one.endpoint} has blocks of 24 tokens" in said[0]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (vllm(started=100), vllm(started=200)),
            (vllm(prompt=5000), vllm(prompt=10)),
            (vllm(), vllm(asleep=True)),
        ],
        ids=["another process", "a counter fell", "asleep"],
    )
    async def test_an_engine_that_began_anew_is_cold(self, before: bytes, after: bytes) -> None:
        async with two_engines() as (one, other):
            one.answer = page(before)
            async with serving(config(one.endpoint, other.endpoint)) as (app, channel):
                await until(lambda: known(app))
                await picks(channel)
                warm = blocks(app, other.endpoint)
                assert blocks(app, one.endpoint) > 0
                one.answer = page(after)
                await until(lambda: not blocks(app, one.endpoint))
                assert blocks(app, other.endpoint) == warm

    async def test_an_engine_without_metrics_that_was_away_is_cold(self) -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(metrics_server(page(b"no metrics\n")))
            async with serving(config(first.endpoint)) as (app, channel):
                await until(lambda: known(app))
                await picks(channel, 2)
                assert blocks(app, first.endpoint) > 0
                await stack.aclose()
                await until(lambda: sample(app, "homing_scrapes_total", **REFUSED))
                async with metrics_server(page(b"no metrics\n"), first.port):
                    await until(lambda: not blocks(app, first.endpoint))

    async def test_a_real_engine_is_understood(self) -> None:
        settings = EngineSettings(port=0, blocks=64, prefill_tokens_per_s=1e9, request_ms=0)
        async with engine(settings) as running:
            endpoint = running.url.removeprefix("http://")
            async with serving(config(endpoint)) as (app, channel):
                await until(lambda: known(app))
                await picks(channel, 6)
                assert blocks(app, endpoint) == 63


REFUSED = {"pool": "test", "result": "refused"}


class TestWhoIsPicked:
    async def test_an_engine_that_is_gone_is_not_picked_until_it_is_back(self) -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(metrics_server(page(vllm())))
            async with AsyncExitStack() as life:
                one = await life.enter_async_context(metrics_server(page(vllm())))
                settings = config(one.endpoint, other.endpoint)
                app, channel = await stack.enter_async_context(serving(settings))
                await until(lambda: known(app))
                assert await picks(channel) == {one.endpoint, other.endpoint}
            condition = app.pools[0].members.conditions.of(InstanceId(one.endpoint))
            await until(lambda: not condition.alive)
            assert await picks(channel) == {other.endpoint}
            await stack.enter_async_context(metrics_server(page(vllm()), one.port))
            await until(lambda: condition.alive)
            assert await picks(channel) == {one.endpoint, other.endpoint}

    async def test_a_hung_engine_is_gone_too(self) -> None:
        async with (
            two_engines() as (one, other),
            serving(config(one.endpoint, other.endpoint)) as (app, channel),
        ):
            await until(lambda: known(app))
            conditions = app.pools[0].members.conditions
            one.answer = None
            await until(lambda: not conditions.of(InstanceId(one.endpoint)).alive)
            assert await picks(channel) == {other.endpoint}

    async def test_where_all_are_gone_all_are_tried(self) -> None:
        async with AsyncExitStack() as life:
            one = await life.enter_async_context(metrics_server(page(vllm())))
            other = await life.enter_async_context(metrics_server(page(vllm())))
            async with serving(config(one.endpoint, other.endpoint)) as (app, channel):
                await until(lambda: known(app))
                await life.aclose()
                conditions = app.pools[0].members.conditions
                await until(
                    lambda: not any(conditions.of(one.id).alive for one in app.pools[0].instances)
                )
                assert await picks(channel) == {one.endpoint, other.endpoint}

    async def test_an_engine_that_others_keep_busy_gets_less(self) -> None:
        async with two_engines() as (one, other):
            one.answer = page(vllm(running=8, waiting=20, prompt=1e6, done=100))
            async with serving(config(one.endpoint, other.endpoint)) as (app, channel):
                await until(lambda: known(app))
                assert await picks(channel) == {other.endpoint}

    @pytest.mark.parametrize("flags", [0, None])
    async def test_whom_envoy_could_not_reach_is_left_out_at_once(self, flags: int | None) -> None:
        servers = ("10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3")
        async with serving(config(*servers, metrics="off")) as (app, channel):
            exchange, order = await ask(channel)
            await exchange.answer(200, served=order[2], attempts=3, flags=flags)
            assert await picks(channel) == {order[2]}
            await exchange.end()
            assert app.pools[0].load.in_flight == 0

    async def test_so_is_one_whose_last_attempt_failed(self) -> None:
        async with serving(config("10.0.0.1:1", "10.0.0.2:2", metrics="off")) as (_, channel):
            exchange, order = await ask(channel)
            await exchange.answer(503, served=order[0], attempts=1, flags=0x20)
            await exchange.end()
            assert await picks(channel) == {order[1]}

    async def test_the_first_that_answers_again_gets_the_requests(self) -> None:
        async with serving(config("10.0.0.1:1", "10.0.0.2:2", metrics="off")) as (_, channel):
            for _ in range(2):
                exchange, order = await ask(channel)
                await exchange.answer(503, served=order[0], attempts=1, flags=0x20)
                await exchange.end()
            exchange, order = await ask(channel)
            assert len(order) == 2, "all are tried"
            await exchange.answer(200, served=order[0], attempts=1, flags=0)
            await exchange.end()
            assert await picks(channel) == {order[0]}

    async def test_an_answer_of_503_is_an_answer(self) -> None:
        async with serving(config("10.0.0.1:1", "10.0.0.2:2", metrics="off")) as (_, channel):
            exchange, order = await ask(channel)
            await exchange.answer(503, served=order[0], attempts=1, flags=0)
            await exchange.end()
            assert await picks(channel) == set(order)

    async def test_a_pick_that_envoy_does_not_know_is_not_gone(self) -> None:
        """Envoy takes the next entry of the list, with one attempt."""
        async with serving(config("10.0.0.1:1", "10.0.0.2:2", metrics="off")) as (_, channel):
            exchange, order = await ask(channel)
            await exchange.answer(200, served=order[1], attempts=1, flags=0)
            await exchange.end()
            assert await picks(channel) == set(order)


class TestRanks:
    async def test_a_header_chooses_the_rank_and_an_endpoint_is_named_once(self) -> None:
        ranks = tuple(Instance(endpoint=Endpoint("10.0.0.1:1"), rank=rank) for rank in range(2))
        settings = config(metrics="off", instances=(*ranks, Instance(endpoint="10.0.0.2:2")))
        async with serving(settings) as (app, channel):
            seen: dict[str, set[str | None]] = {}
            for number in range(9):
                exchange = Exchange(channel)
                await exchange.headers(more={"x-data-parallel-rank": "7"})
                reply = await exchange.body(chat(f"{number} {LONG}"))
                order = endpoints(reply)
                assert sorted(order) == ["10.0.0.1:1", "10.0.0.2:2"]
                mutation = reply.request_body.response.header_mutation
                headers = {one.header.key: one.header.raw_value for one in mutation.set_headers}
                rank = headers.get("x-data-parallel-rank")
                seen.setdefault(order[0], set()).add(rank and rank.decode())
                await exchange.answer(200, served=order[0])
                await exchange.end()
            assert seen == {"10.0.0.1:1": {"0", "1"}, "10.0.0.2:2": {None}}
            held = {one.id: blocks(app, one.id) for one in app.pools[0].instances}
            assert all(held.values()), held

    async def test_each_rank_is_read_from_the_page_that_they_share(self) -> None:
        two = page(together(vllm(running=1), vllm(running=2, blocks=31, rank=1)))
        async with metrics_server(two) as one:
            ranks = tuple(Instance(endpoint=Endpoint(one.endpoint), rank=n) for n in range(2))
            async with serving(config(instances=ranks)) as (app, _):
                await until(lambda: known(app))
                pool = app.pools[0]
                caches = [pool.members.conditions.of(each.id).cache for each in pool.instances]
                assert [cache and cache.blocks for cache in caches] == [1000, 30]
                await until(lambda: len(one.requests) >= 10)
                reads = sample(app, "homing_scrapes_total", pool="test", result="read")
                assert 2 * (len(one.requests) - 1) <= reads <= 2 * len(one.requests)


class TestDiscovery:
    """Instances that come and go; the file stands for any discovery."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "engines.json"

    @staticmethod
    def settings(file: Path) -> Config:
        discovery = FileDiscovery(kind="file", path=file)
        return config(metrics="off", discovery=discovery)

    @staticmethod
    def write(file: Path, **states: str) -> None:
        listed = [
            {"endpoint": f"10.0.0.{ord(name)}:1", "name": name, "state": state}
            for name, state in states.items()
        ]
        TestDiscovery.write_text(file, json.dumps({"instances": listed}))

    @staticmethod
    def write_text(file: Path, text: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(text)
        new.rename(file)

    @staticmethod
    def place(name: str) -> str:
        return f"10.0.0.{ord(name)}:1"

    async def test_instances_join_drain_and_leave(self, file: Path) -> None:
        self.write(file, a="ready")
        async with serving(self.settings(file)) as (app, channel):
            pool = app.pools[0]
            assert await picks(channel) == {self.place("a")}
            open_one, _ = await ask(channel)
            self.write(file, a="draining", b="ready", c="starting")
            await until(lambda: len(pool.instances) == 3)
            assert await picks(channel) == {self.place("b")}
            assert pool.load.in_flight == 1, "what is in flight goes on"
            assert blocks(app, "a") > 0
            self.write(file, b="ready", c="ready")
            await until(lambda: len(pool.instances) == 2)
            assert await picks(channel, words="new") == {self.place("b"), self.place("c")}
            assert blocks(app, "a") == 0
            await open_one.answer(200, served=self.place("a"))
            await open_one.end()
            assert pool.load.in_flight == 0

    async def test_an_empty_list_is_a_503_and_a_wrong_one_changes_nothing(self, file: Path) -> None:
        self.write(file, a="ready")
        async with serving(self.settings(file)) as (app, channel):
            errors = {"pool": "test", "kind": "file"}
            self.write_text(file, "nothing")
            await until(lambda: sample(app, "homing_discovery_errors_total", **errors))
            assert await picks(channel) == {self.place("a")}
            self.write(file)
            await until(lambda: not app.pools[0].instances)
            exchange = Exchange(channel)
            await exchange.headers()
            refusal = (await exchange.body(chat(LONG))).immediate_response
            assert refusal.status.code == 503, MessageToDict(refusal)
            await exchange.end()

    async def test_a_start_without_any_list_serves_once_there_is_one(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("extproc.serve.engines.FIRST_LIST_S", 0.05)
        async with serving(self.settings(file)) as (app, channel):
            assert "pool test: no instances are known yet" in caplog.text
            assert app.ready
            assert app.pools[0].roster is None, "nobody has left: nobody is known to be missing"
            self.write(file, a="ready")
            await until(lambda: app.pools[0].instances)
            assert await picks(channel) == {self.place("a")}

    async def test_what_comes_and_goes_is_said(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        self.write(file, a="ready")
        async with serving(self.settings(file)) as (app, _):
            self.write(file, a="draining", b="ready")
            await until(lambda: len(app.pools[0].instances) == 2)
        lines = [each.getMessage() for each in caplog.records if each.name == "homing.engines"]
        assert lines == [
            f"pool test: + instance a at {self.place('a')}",
            f"pool test: instance a is draining, + instance b at {self.place('b')}",
        ]

    async def test_an_instance_that_flaps_with_requests_in_flight_keeps_its_counts_right(
        self, file: Path
    ) -> None:
        """Counters that went negative (llm-d #1950)."""
        self.write(file, a="ready")
        async with serving(self.settings(file)) as (app, channel):
            pool = app.pools[0]
            there = pool.instances
            exchanges = []
            for round_ in range(4):
                exchanges += [(await ask(channel, f"{round_} {n}"))[0] for n in range(3)]
                pool.members.set_instances(())
                pool.enrol()
                early = exchanges.pop(0)
                await early.answer(200, served=self.place("a"))
                await early.end()
                pool.members.set_instances(there)
                pool.enrol()
                assert pool.load.in_flight_at(InstanceId("a")) == len(exchanges)
            for exchange in exchanges:
                await exchange.answer(500)
                await exchange.end()
            assert pool.load.in_flight_at(InstanceId("a")) == 0
            assert pool.load.of(InstanceId("a"), 1e9, 1.0) == (0, 0)


async def test_the_admin_port_shows_how_each_instance_fares() -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(metrics_server(page(vllm(running=2, waiting=1))))
        app, _ = await stack.enter_async_context(serving(config(one.endpoint)))
        await until(lambda: known(app))
        pool = app.pools[0]
        gone = Found(InstanceId("gone"), Endpoint("10.0.0.9:1"), State.DRAINING)
        pool.members.set_instances([*pool.instances, gone])
        pool.enrol()
        pool.members.conditions.unreachable(gone.endpoint, now=0)
        port = app._admin._runner.addresses[0][1]
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))
        async with http.get("/pools") as answer:
            (shown,) = await answer.json()
        first, second = shown["instances"]
        assert first["state"] == "ready"
        assert first["answers"] is True
        engine_says = first["engine"]
        assert engine_says.pop("age_s") >= 0
        assert engine_says == {
            "running": 2,
            "waiting": 1,
            "cache_usage": 0.25,
            "asleep": False,
            "known": True,
        }
        assert (second["state"], second["answers"]) == ("draining", False)
        async with http.get("/metrics") as answer:
            text = await answer.text()
        assert 'homing_instances{answers="yes",pool="test",state="ready"} 1.0' in text
        assert 'homing_instances{answers="no",pool="test",state="draining"} 1.0' in text
        assert 'homing_instances_load_unknown{pool="test"} 1.0' in text
