"""Hints of when a conversation comes back, from a header or learnt: they change where others go."""

from collections.abc import Mapping
from typing import Any

import pytest

from extproc.config import Hints, Proxy
from extproc.serve import App
from extproc.serve.wishes import HINT_ERROR, Told, told
from tests.serve.proxy import ENDPOINTS, LONG, Exchange, chat, config, endpoints, sample, serving

HEADER = "X-Returns-In"


def settings(**more: Any) -> Any:
    (pool,) = config().pools
    hints = {"hints": Hints(header=HEADER), "prefill_rate": 1_000.0, "session_header": "x-session"}
    return config(pools=(pool.model_copy(update={**hints, **more}),))


async def turn(
    channel: Any,
    words: str,
    headers: Mapping[str, str] = {},
    status: int = 200,
    **more: Any,
) -> str:
    """One turn to its end; where it went."""
    exchange = Exchange(channel)
    await exchange.headers(more=dict(headers))
    (there, *_) = endpoints(await exchange.body(chat(words, **more)))
    await exchange.answer(status, served=there)
    await exchange.end()
    return there


def due(app: App) -> dict[str, int]:
    returns = app.pools[0].outlook.returns
    return {there: len(returns._due.get(name, ())) for name, there in ENDPOINTS.items()}  # type: ignore[call-overload]


async def test_others_keep_away_from_where_a_turn_is_told_to_come_back() -> None:
    async with serving(settings()) as (app, channel):
        homes = [await turn(channel, f"{n} {LONG}", {HEADER: "0.3;error=0"}) for n in range(2)]
        assert len(set(homes)) == 2
        (free,) = set(ENDPOINTS.values()) - set(homes)
        for number in range(3):
            assert await turn(channel, f"New {number}. {LONG}") == free
        assert sample(app, "homing_hints_total", pool="test", source="told") == 2


async def test_the_turn_that_was_told_of_is_not_kept_from_its_own_home() -> None:
    async with serving(settings()) as (app, channel):
        home = await turn(channel, LONG, {HEADER: "0.6;error=0"})
        assert due(app)[home] == 1
        said = [
            {"role": "user", "content": LONG},
            {"role": "assistant", "content": "So they do."},
            {"role": "user", "content": "And what do they take away again when they leave? " * 9},
        ]
        assert await turn(channel, "", messages=said) == home
        assert not any(due(app).values())


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("0.3;error=0", 1),
        (0.3, 1),
        (3, 1),
        (None, 0),
        ({"in": 3}, 0),
        (True, 0),
        (10**400, 0),
        ("0" * 65, 0),
    ],
)
async def test_metadata_tells_the_same(value: object, count: int) -> None:
    async with serving(settings(hints=Hints(metadata="returns_in"))) as (app, channel):
        home = await turn(channel, LONG, metadata={"returns_in": value, "user": "somebody"})
        assert due(app)[home] == sum(due(app).values())
        assert count or not due(app)[home]
        assert sample(app, "homing_hints_total", pool="test", source="told") == count
        bad = sample(app, "homing_hints_total", pool="test", source="bad")
        assert bad == (value is not None and not count)


async def test_the_header_counts_where_metadata_tells_something_else() -> None:
    async with serving(settings(hints=Hints(header=HEADER, metadata="m"))) as (app, channel):
        await turn(channel, LONG, {HEADER: "soon"}, metadata={"m": "0.3;error=0"})
        assert sample(app, "homing_hints_total", pool="test", source="bad") == 1
        assert sample(app, "homing_hints_total", pool="test", source="told") == 0


@pytest.mark.parametrize("metadata", ["returns_in", [3], None])
async def test_metadata_that_is_no_object_tells_nothing(metadata: object) -> None:
    async with serving(settings(hints=Hints(metadata="returns_in"))) as (app, channel):
        await turn(channel, LONG, metadata=metadata)
        assert not any(due(app).values())


@pytest.mark.parametrize(
    ("value", "source"),
    [("soon", "bad"), ("-1", "bad"), ("nan", "bad"), ("1e9", "bad"), ("60", "vague")],
)
async def test_a_hint_that_says_nothing_of_use_changes_nothing_and_is_counted(
    value: str, source: str
) -> None:
    async with serving(settings()) as (app, channel):
        await turn(channel, LONG, {HEADER: value})
        assert not any(due(app).values())
        assert sample(app, "homing_hints_total", pool="test", source=source) == 1


async def test_an_answer_that_failed_or_did_not_come_is_no_reason_to_come_back() -> None:
    async with serving(settings()) as (app, channel):
        await turn(channel, LONG, {HEADER: "30;error=0"}, status=500)
        exchange = Exchange(channel)
        await exchange.headers(more={HEADER: "30;error=0"})
        await exchange.body(chat(LONG))
        await exchange.end()
        assert not any(due(app).values())


async def test_a_session_that_comes_back_regularly_is_expected() -> None:
    async with serving(settings()) as (app, channel):
        for _ in range(4):
            home = await turn(channel, LONG, {"x-session": "agent"})
        assert sample(app, "homing_hints_total", pool="test", source="learnt") >= 1
        assert home in ENDPOINTS.values()


async def shown(channel: Any, answer: bytes) -> None:
    """A turn of a session whose answer is shown."""
    exchange = Exchange(channel)
    await exchange.headers(more={"x-session": "agent"})
    (there, *_) = endpoints(await exchange.body(chat(LONG)))
    reply = await exchange.answer(200, served=there)
    assert reply.mode_override.response_body_mode
    await exchange.answer_body(answer, end=True)
    await exchange.end()


def reading(**hints: bool) -> Any:
    return settings(hints=Hints(**hints)).model_copy(update={"proxy": Proxy(mode_override=True)})


async def test_what_follows_a_call_of_a_tool_is_learnt_from_the_answers() -> None:
    call = b'{"choices": [{"message": {"content": null}, "finish_reason": "tool_calls"}]}'
    async with serving(reading(tool_calls=True)) as (app, channel):
        for _ in range(4):
            await shown(channel, b'{"choices": [{"finish_reason": "stop"}]}')
            await shown(channel, call)
        (client,) = app.pools[0].gaps._clients.values()
        assert client.others.count == 4
        assert client.after_tool.count == 3


async def test_answers_are_not_asked_for_where_nobody_is_to_learn_from_them() -> None:
    for hints, headers in (({}, {"x-session": "agent"}), ({"tool_calls": True}, {})):
        async with serving(reading(**hints)) as (_, channel):
            exchange = Exchange(channel)
            await exchange.headers(more=headers)
            (there, *_) = endpoints(await exchange.body(chat(LONG)))
            reply = await exchange.answer(200, served=there)
            assert not reply.mode_override.response_body_mode
            await exchange.end()


async def test_nothing_is_learnt_or_used_where_it_is_not_asked_for() -> None:
    async with serving(settings(hints=None)) as (app, channel):
        for _ in range(5):
            await turn(channel, LONG, {"x-session": "agent", HEADER: "0.1"})
        assert not any(due(app).values())
        assert not app.pools[0].gaps._clients


def test_a_hint_is_a_number_of_seconds_and_perhaps_its_error() -> None:
    assert told("1.5") == Told(1.5, 1.5 * HINT_ERROR)
    assert told("30; error=0.5") == Told(30.0, 0.5)
    assert told("30;error=") is None
    assert told("30;q=1") is None
    assert told("") is None
