"""The subset hint (PROTOCOLS: picker protocol), on requests with and without a body."""

import pytest
from google.protobuf.json_format import MessageToDict

from tests.serve.proxy import ENDPOINTS, LONG, Exchange, ask, chat, config, picked, serving


@pytest.mark.parametrize(
    ("subset", "allowed"),
    [
        (["10.0.0.2:8000"], {"b"}),
        (["10.0.0.2"], {"b"}),
        (["10.0.0.1:8000", "10.0.0.3"], {"a", "c"}),
        (["10.0.0.2:9999", "10.0.0.3:8000"], {"c"}),
        ([" 10.0.0.1:8000 "], {"a"}),
    ],
)
async def test_only_what_the_hint_names_is_picked(subset: list[str], allowed: set[str]) -> None:
    async with serving() as (_, channel):
        with_body = Exchange(channel)
        await with_body.headers(subset=subset)
        assert set(picked(await with_body.body(chat(LONG)))) == allowed
        await with_body.end()
        without = Exchange(channel)
        assert set(picked(await without.headers("/v1/models", "GET", True, subset))) == allowed
        await without.end()


@pytest.mark.parametrize("subset", [[], ["10.9.9.9:8000"], ["10.0.0.1:9999"]])
async def test_a_hint_that_leaves_nobody_is_a_503_with_its_reason(subset: list[str]) -> None:
    async with serving() as (app, channel):
        for end in (False, True):
            exchange = Exchange(channel)
            reply = await exchange.headers(end=end, subset=subset)
            if not end:
                reply = await exchange.body(chat(LONG))
            refusal = MessageToDict(reply.immediate_response)
            assert reply.immediate_response.status.code == 503
            assert "no_endpoint" in str(reply.immediate_response.headers), refusal
            await exchange.end()
        assert app.pools[0].load.in_flight == 0


async def test_the_list_is_ordered_and_no_longer_than_there_are_fallbacks() -> None:
    async with serving() as (_, channel):
        first, home = await ask(channel, chat(LONG))
        await first.end()
        exchange = Exchange(channel)
        await exchange.headers()
        names = picked(await exchange.body(chat(LONG)))
        assert names[0] == home
        assert sorted(names) == sorted(ENDPOINTS)
        await exchange.end()


@pytest.mark.parametrize(
    ("policy", "instances"), [("priced", 1), ("least-tokens", 3), ("round-robin", 3)]
)
async def test_only_the_default_policy_sends_a_prompt_to_who_has_it(
    policy: str, instances: int
) -> None:
    (pool,) = config().pools
    chosen = config(pools=(pool.model_copy(update={"policy": policy}),))
    async with serving(chosen) as (_, channel):
        picks = set()
        for _ in ENDPOINTS:
            exchange, name = await ask(channel, chat(LONG))
            await exchange.end()
            picks.add(name)
        assert len(picks) == instances
