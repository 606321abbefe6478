"""Whatever breaks inside, a request is routed by load, counted and logged once, not its text."""

import logging
import threading

import pytest

from extproc.config import Limits
from extproc.errors import Unroutable
from extproc.serve import App
from tests.serve.proxy import ENDPOINTS, LONG, Exchange, ask, chat, config, picked, sample, serving

SECRET = "my password is swordfish"


def by_load(app: App, reason: str) -> float:
    return sample(app, "homing_picks_total", pool="test", why="load", reason=reason)


@pytest.mark.parametrize(
    "body",
    [
        chat(LONG, model="unknown"),
        b'{"model": "demo-model", "messages": [{"role": "user", "content": NaN}]}',
    ],
    ids=["unknown model", "NaN"],
)
async def test_a_body_that_cannot_be_looked_up_is_routed_by_load(body: bytes) -> None:
    async with serving() as (app, channel):
        for _ in range(6):
            exchange, _ = await ask(channel, body)
            await exchange.end()
        counted = {
            s.labels["reason"]: s.value
            for family in app.metrics.registry.collect()
            for s in family.samples
            if s.name == "homing_picks_total"
        }
        assert sum(counted.values()) == 6
        assert "" not in counted, counted


async def test_other_paths_are_spread_over_the_instances() -> None:
    async with serving() as (app, channel):
        names = set()
        for _ in range(6):
            exchange = Exchange(channel)
            names.add(picked(await exchange.headers("/v1/models", "GET", end=True))[0])
            await exchange.end()
        assert names == set(ENDPOINTS)
        assert by_load(app, "other_path") == 6


async def test_a_request_without_a_body_is_the_engines_to_judge() -> None:
    async with serving() as (app, channel):
        exchange = Exchange(channel)
        assert picked(await exchange.headers(end=True))
        await exchange.end()
        assert by_load(app, "no_body") == 1


class BrokenModel:
    """A model whose template or tokenizer fails in a way that nobody foresaw."""

    name = "demo-model"

    def encode(self, *_: object) -> None:
        raise RuntimeError(SECRET)


async def test_a_fault_of_ours_costs_the_client_nothing_and_tells_nobody_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (app, channel):
        app.pools[0].models["demo-model"] = BrokenModel()  # type: ignore[assignment]
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                exchange, _ = await ask(channel, chat(SECRET))
                await exchange.end()
        assert by_load(app, "internal_error") == 3
        assert sample(app, "homing_internal_errors_total", where="encode") == 3
        assert sum("RuntimeError" in line for line in caplog.messages) == 1
        assert SECRET not in caplog.text


class BrokenIndex:
    """An index that fails where nobody foresaw it."""

    def match(self, _: object) -> None:
        raise LookupError(SECRET)


async def test_a_broken_index_costs_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (app, channel):
        app.pools[0].index = BrokenIndex()  # type: ignore[assignment]
        exchange, _ = await ask(channel, chat(LONG))
        await exchange.end()
        assert by_load(app, "internal_error") == 1
        assert sample(app, "homing_internal_errors_total", where="match") == 1
        assert SECRET not in caplog.text


class BrokenPolicy:
    """A policy that fails for every request."""

    def rank(self, *_: object) -> None:
        raise ZeroDivisionError


async def test_with_a_broken_policy_the_proxy_places_the_request_itself() -> None:
    async with serving() as (app, channel):
        app.pools[0].policy = BrokenPolicy()  # type: ignore[assignment]
        exchange = Exchange(channel)
        await exchange.headers()
        reply = await exchange.body(chat(LONG))
        assert reply.HasField("request_body")
        assert not reply.HasField("dynamic_metadata")
        assert sample(app, "homing_internal_errors_total", where="place") == 1
        await exchange.end()


async def test_a_model_whose_tokenizer_is_still_loading_is_routed_by_load() -> None:
    async with serving() as (app, channel):
        app.pools[0].models.clear()
        exchange, _ = await ask(channel, chat(LONG))
        await exchange.end()
        assert by_load(app, "model_loading") == 1


class SlowModel:
    """A model that takes a prompt and does not come back until it is let."""

    name = "demo-model"

    def __init__(self) -> None:
        self.let = threading.Event()

    def encode(self, *_: object) -> None:
        self.let.wait(30)
        raise Unroutable("too_late")


async def test_a_slow_prompt_is_routed_by_load_in_time_and_holds_up_nobody() -> None:
    async with serving(config(limits=Limits(pick_timeout_ms=1))) as (app, channel):
        slow = SlowModel()
        app.pools[0].models["demo-model"] = slow  # type: ignore[assignment]
        try:
            for _ in range(3):  # more than there are threads
                exchange, _ = await ask(channel, chat(LONG * 40))
                await exchange.end()
            assert by_load(app, "pick_timeout") == 3
        finally:
            slow.let.set()


async def test_prompts_beyond_the_encoders_queue_are_routed_by_load() -> None:
    async with serving(config(limits=Limits(pick_timeout_ms=1))) as (app, channel):
        slow = SlowModel()
        app.pools[0].models["demo-model"] = slow  # type: ignore[assignment]
        try:
            for _ in range(70):
                exchange, _ = await ask(channel, chat(LONG * 40))
                await exchange.end()
            assert by_load(app, "encoders_busy") == 70 - 64
        finally:
            slow.let.set()


async def test_a_body_that_no_engine_accepts_is_a_400_in_openais_form() -> None:
    async with serving() as (app, channel):
        exchange = Exchange(channel)
        await exchange.headers()
        reply = await exchange.body(b'{"model": "demo-model", "messages": "hello"}')
        assert reply.immediate_response.status.code == 400
        assert b'"type": "invalid_request_error"' in reply.immediate_response.body
        assert b"messages" in reply.immediate_response.body
        await exchange.end()
        assert sample(app, "homing_refusals_total", code="invalid_request") == 1
        assert app.pools[0].load.in_flight == 0
