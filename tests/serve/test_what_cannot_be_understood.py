"""Whatever breaks inside, a request is routed by load, counted and logged once, not its text."""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import pytest

from extproc.config import Limits, Model
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.prompt import ServedModel
from extproc.prompt.modelfiles import read_templates
from extproc.prompt.tokenizer import Tokenizer
from extproc.serve import App
from extproc.serve.encoder import THREADS
from extproc.terms import TokenIds
from tests.serve.proxy import (
    ENDPOINTS,
    LONG,
    MODEL,
    Exchange,
    ask,
    chat,
    config,
    picked,
    sample,
    serving,
)

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


class SlowTokenizer(Tokenizer):
    """A tokenizer that takes a text and does not come back until it is let."""

    def __init__(self) -> None:
        super().__init__(DEMO_TOKENIZER / "tokenizer.json")
        self.let = threading.Event()
        self.let.set()

    def encode_pieces(self, texts: Sequence[str]) -> list[TokenIds]:
        self.let.wait(30)
        return super().encode_pieces(texts)


@contextmanager
def slow_model(app: App, name: str = MODEL) -> Iterator[None]:
    """From here to the end of the block the model is slow."""
    tokenizer = SlowTokenizer()
    templates = read_templates(DEMO_TOKENIZER, None, datetime.now)
    app.pools[0].models[name] = ServedModel(name, tokenizer, templates)
    tokenizer.let.clear()
    try:
        yield
    finally:
        tokenizer.let.set()


IN_NO_TIME = Limits(pick_timeout_ms=1)


async def test_a_slow_prompt_is_routed_by_load_in_time_and_holds_up_nobody() -> None:
    async with serving(config(limits=IN_NO_TIME)) as (app, channel):
        with slow_model(app):
            for _ in range(3):  # more than there are threads; the body is known from the second on
                exchange, _ = await ask(channel, chat("slow " + LONG * 40))
                await exchange.end()
            assert by_load(app, "pick_timeout") == 3


async def test_a_long_prompt_that_only_another_model_knows_holds_up_nobody() -> None:
    async with serving() as (app, channel):
        for _ in range(2):
            exchange, _ = await ask(channel, chat("known " + LONG * 40))
            await exchange.end()
        assert by_load(app, "") == 0
    async with serving(config(limits=IN_NO_TIME)) as (app, channel):
        with slow_model(app):
            exchange, _ = await ask(channel, chat("known " + LONG * 40))
            await exchange.end()
            assert by_load(app, "pick_timeout") == 1


async def test_prompts_beyond_the_encoders_queue_are_routed_by_load() -> None:
    async with serving(config(limits=IN_NO_TIME)) as (app, channel):
        with slow_model(app):
            for _ in range(70):
                exchange, _ = await ask(channel, chat("queued " + LONG * 40))
                await exchange.end()
            assert by_load(app, "encoders_busy") == 70 - 64


async def test_a_known_turn_needs_no_thread_and_a_new_one_does() -> None:
    both = tuple(Model(name=name, tokenizer=DEMO_TOKENIZER) for name in (MODEL, "slow"))
    pools = tuple(pool.model_copy(update={"models": both}) for pool in config().pools)
    async with serving(config(pools=pools, limits=Limits(pick_timeout_ms=20_000))) as (
        app,
        channel,
    ):
        messages = [{"role": "user", "content": "turn one " + LONG * 40}]

        async def turn() -> None:
            body = json.dumps({"model": MODEL, "messages": messages}).encode()
            exchange, _ = await ask(channel, body)
            await exchange.end()
            messages.append({"role": "assistant", "content": "Here you are."})
            messages.append({"role": "user", "content": "And more of it?"})

        await turn()
        with slow_model(app, "slow"):
            waiting = [Exchange(channel) for _ in range(THREADS)]
            for number, exchange in enumerate(waiting):
                await exchange.headers()
                await exchange.chunk(chat(f"{number} " + LONG * 40, model="slow"), end=True)
            await turn()
            assert sample(app, "homing_picks_total", pool="test", why="home", reason="") == 1
        for exchange in waiting:
            await exchange.read()
            await exchange.end()


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
