"""A turn that gives only the id of the answer before it goes to the instance that has it."""

import json

from extproc.config import Proxy
from extproc.serve.responses import MOST_BYTES, MOST_IDS, IdReader, Responses
from extproc.terms import InstanceId
from tests.serve.proxy import Exchange, config, picked, sample, serving

RESPONSES = "/v1/responses"


def body(**more: str) -> bytes:
    return json.dumps({"model": "demo-model", "input": "And then? " * 40, **more}).encode()


async def answered(exchange: Exchange, data: bytes) -> None:
    """The engine's answer passes, body and all."""
    reply = await exchange.answer(200)
    assert reply.mode_override.response_body_mode
    await exchange.answer_body(data, end=True)
    await exchange.end()


async def test_the_next_turn_goes_to_who_answered() -> None:
    async with serving(config(proxy=Proxy(mode_override=True))) as (app, channel):
        homes = {}
        for number in range(6):
            exchange = Exchange(channel)
            await exchange.headers(RESPONSES)
            (homes[number], *_) = picked(await exchange.body(body(user=str(number))))
            await answered(exchange, b'{"object": "response", "id": "resp_%d"}' % number)
        for number, home in homes.items():
            exchange = Exchange(channel)
            await exchange.headers(RESPONSES)
            next_turn = body(previous_response_id=f"resp_{number}")
            assert picked(await exchange.body(next_turn)) == [home]
            await exchange.end()
        known = {"pool": "test", "why": "load", "reason": "previous_response"}
        assert sample(app, "homing_picks_total", **known) == 6


async def test_an_id_that_is_not_known_is_routed_by_load_and_counted() -> None:
    async with serving() as (app, channel):
        exchange = Exchange(channel)
        await exchange.headers(RESPONSES)
        assert picked(await exchange.body(body(previous_response_id="resp_unknown")))
        await exchange.end()
        unknown = {"pool": "test", "why": "load", "reason": "previous_response_unknown"}
        assert sample(app, "homing_picks_total", **unknown) == 1


def test_the_id_is_found_however_the_answer_is_cut() -> None:
    answer = b'event: response.created\ndata: {"response": {"id": "resp_a-1_B"}}\n\n'
    for size in range(1, len(answer)):
        reader = IdReader()
        cut = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert [found for data in cut if (found := reader.feed(data))] == ["resp_a-1_B"]


def test_an_answer_without_an_id_is_not_kept() -> None:
    reader = IdReader()
    assert reader.feed(b"x" * MOST_BYTES) is None
    assert reader.feed(b'"id": "resp_late"') is None


async def test_the_oldest_ids_go_first() -> None:
    async with serving() as (app, _):
        responses = Responses()
        for number in range(MOST_IDS + 1):
            responses.remember(f"resp_{number}", app.pools[0], InstanceId("a"))
        assert responses.find("resp_0") is None
        assert responses.find("resp_1") is not None
