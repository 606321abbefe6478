"""Priorities, refusals for load, and sessions of prompts whose tokens are unknown."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import pytest

from extproc.config import Admission, Config, Instance, Model, Pool, Priority, Shed
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.routing import Score, Utilisation
from extproc.serve import App
from extproc.serve.wishes import MOST_SESSIONS, Sessions
from extproc.terms import Endpoint, InstanceId
from tests.serve.proxy import LONG, Exchange, chat, config, endpoints, serving

A, B = "10.0.0.1:8000", "10.0.0.2:8000"
PRIORITY = Priority(header="X-Priority", weights={"batch": 0.1})


def settings(**more: Any) -> Config:
    pool = Pool(
        name="test",
        models=(Model(name="m", tokenizer=DEMO_TOKENIZER),),
        instances=tuple(
            Instance(name=InstanceId(name), endpoint=Endpoint(endpoint))
            for name, endpoint in (("a", A), ("b", B))
        ),
        metrics="off",
        prefill_rate=1_000.0,
        **more,
    )
    return config(pools=(pool,))


def wait(app: App, instance: str, seconds: float) -> None:
    """Let somebody else's prompt be in front there."""
    app.pools[0].outlook.start(InstanceId(instance), seconds * 1_000.0, monotonic())


async def asked(channel: Any, body: bytes, headers: Mapping[str, str] = {}) -> Any:
    exchange = Exchange(channel)
    await exchange.headers(more=dict(headers))
    reply = await exchange.body(body)
    await exchange.end()
    return reply


async def picked(channel: Any, body: bytes, headers: Mapping[str, str] = {}) -> str:
    return endpoints(await asked(channel, body, headers))[0]


UNKNOWN = chat(LONG, model="m", chat_template="{{ messages }}")
"""A template of the request's own: its tokens are not known."""


class TestPriorities:
    async def test_who_is_in_no_hurry_waits_where_its_prompt_is_cached(self) -> None:
        async with serving(settings(priority=PRIORITY)) as (app, channel):
            home = await picked(channel, chat(LONG, model="m"))
            other = B if home == A else A
            tokens = len(LONG) / 4
            wait(app, "a" if home == A else "b", 3 * tokens / 1_000)
            batch = {"x-priority": "batch"}
            assert await picked(channel, chat(LONG, model="m"), batch) == home
            assert await picked(channel, chat(LONG + "?", model="m")) == other

    async def test_a_value_that_is_not_listed_counts_in_full(self) -> None:
        async with serving(settings(priority=PRIORITY, shed=Shed(max_wait_s=5))) as (app, channel):
            for name in "ab":
                wait(app, name, 3)
            assert await picked(channel, UNKNOWN, {"x-priority": "urgent!"}) in (A, B)


class TestShedding:
    async def test_a_request_that_would_wait_for_too_long_is_refused(self) -> None:
        async with serving(settings(shed=Shed(max_wait_s=5))) as (app, channel):
            for name in "ab":
                wait(app, name, 20)
            reply = (await asked(channel, UNKNOWN)).immediate_response
            headers = {one.header.key: one.header.raw_value for one in reply.headers.set_headers}
            assert reply.status.code == 429
            assert 14 <= int(headers["retry-after"]) <= 15
            assert headers["x-homing-reason"] == b"saturated"
            assert b'"code":"saturated"' in reply.body.replace(b" ", b"")
            assert app.pools[0].load.in_flight == 2, "what is refused leaves nothing behind"

    async def test_as_long_as_one_instance_is_free_nobody_is_refused(self) -> None:
        async with serving(settings(shed=Shed(max_wait_s=5))) as (app, channel):
            wait(app, "a", 20)
            assert await picked(channel, UNKNOWN) == B

    async def test_what_is_less_urgent_is_refused_first(self) -> None:
        limits = {"shed": Shed(max_wait_s=5), "priority": PRIORITY}
        async with serving(settings(**limits)) as (app, channel):
            for name in "ab":
                wait(app, name, 3)
            reply = await asked(channel, UNKNOWN, {"x-priority": "batch"})
            assert reply.immediate_response.status.code == 429
            assert await picked(channel, UNKNOWN) in (A, B)

    async def test_without_it_nobody_is_refused_for_load(self) -> None:
        async with serving(settings()) as (app, channel):
            for name in "ab":
                wait(app, name, 10_000)
            assert await picked(channel, UNKNOWN) in (A, B)


class TestAdmission:
    async def test_a_new_conversation_is_refused_while_the_caches_are_full_of_live_ones(
        self,
    ) -> None:
        limits = {"admission": Admission(horizon_s=60), "capacity_blocks": 20}
        async with serving(settings(**limits)) as (app, channel):
            pool = app.pools[0]
            assert pool.capacity_tokens == 2 * 20 * 16
            await picked(channel, chat(LONG, model="m"))
            busy = Utilisation(monotonic() - 10.5)
            busy.at = lambda *_: 0.9  # type: ignore[method-assign]
            pool.outlook.utilisation = busy
            refused = (await asked(channel, chat("Another. " + LONG, model="m"))).immediate_response
            headers = {h.header.key: h.header.raw_value for h in refused.headers.set_headers}
            assert refused.status.code == 429
            assert headers["retry-after"] == b"5"
            assert b"no_room" in refused.body
            turns = [
                {"role": "user", "content": LONG},
                {"role": "assistant", "content": "So they do."},
                {"role": "user", "content": "And what else?"},
            ]
            assert await picked(channel, chat("", model="m", messages=turns)) in (A, B)

    async def test_without_it_every_conversation_is_served(self) -> None:
        async with serving(settings(capacity_blocks=20)) as (_, channel):
            for number in range(4):
                assert await picked(channel, chat(f"{number} " + LONG, model="m")) in (A, B)


class TestSessions:
    async def test_turns_of_unknown_tokens_follow_their_session(self) -> None:
        async with serving(settings(session_header="X-Session-Id")) as (_, channel):
            first = {
                name: await picked(channel, UNKNOWN, {"x-session-id": name}) for name in "uvwx"
            }
            for _ in range(3):
                for name, home in first.items():
                    assert await picked(channel, UNKNOWN, {"x-session-id": name}) == home

    async def test_a_home_that_is_too_busy_is_left(self) -> None:
        async with serving(settings(session_header="X-Session-Id")) as (app, channel):
            session = {"x-session-id": "u"}
            home = await picked(channel, UNKNOWN, session)
            wait(app, "a" if home == A else "b", 10 * len(UNKNOWN) / 4_000)
            assert await picked(channel, UNKNOWN, session) == (B if home == A else A)

    def test_sessions_are_bounded_and_the_longest_silent_forgotten(self) -> None:
        sessions = Sessions(b"8 bytes.")
        for number in range(MOST_SESSIONS + 1):
            sessions.went(str(number), InstanceId("a"))
        assert sessions.home("0") is None
        assert sessions.home("1") == "a"
        assert len(sessions._homes) == MOST_SESSIONS


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_the_cost_weighs_the_wait_and_the_reasons_tell_it_as_it_is(weight: float) -> None:
    score = Score(InstanceId("a"), Endpoint(A), 0, 10.0, 1.0, 2.0, weight)
    assert score.wait_s == 10.0
    assert score.cost_s == pytest.approx(10.0 * weight + 3.0)
