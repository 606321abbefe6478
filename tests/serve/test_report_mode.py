"""Bodies are forwarded without `kv_cache_report_mode` where copies of blocks are counted."""

import json
from typing import Any

import pytest

from extproc.config import Config, Events
from tests.serve.proxy import LONG, MODEL, Exchange, chat, config, picked, sample, serving
from tests.serve.test_aliases import ALIAS, asked, forwarded, headers_of, renaming

XARGS = {"vllm_xargs": {"kv_cache_report_mode": "full"}}


def counting(settings: Config | None = None, **changes: Any) -> Config:
    """With KV-cache events that nobody publishes."""
    settings = settings or config()
    (pool,) = settings.pools
    return settings.model_copy(
        update={"pools": (pool.model_copy(update={"events": Events(port=1, **changes)}),)}
    )


async def test_the_field_is_not_forwarded_and_the_removal_is_counted() -> None:
    async with serving(counting()) as (app, channel):
        exchange, reply = await asked(channel, chat(LONG, **XARGS))
        sent = forwarded(reply)
        await exchange.end()
        assert sent is not None
        assert json.loads(sent) == {**json.loads(chat(LONG)), "vllm_xargs": {}}
        assert headers_of(reply)["content-length"] == str(len(sent))
        assert sample(app, "homing_report_modes_removed_total", pool="test") == 1


async def test_a_body_without_it_is_not_touched() -> None:
    async with serving(counting()) as (app, channel):
        exchange, reply = await asked(channel, chat(LONG + "kv_cache_report_mode"))
        await exchange.end()
        assert forwarded(reply) is None
        assert sample(app, "homing_report_modes_removed_total", pool="test") == 0


@pytest.mark.parametrize("settings", [config(), counting(keep_report_mode=True)])
async def test_it_stays_where_no_events_are_read_or_the_operator_keeps_it(
    settings: Config,
) -> None:
    async with serving(settings) as (_, channel):
        exchange, reply = await asked(channel, chat(LONG, **XARGS))
        await exchange.end()
        assert forwarded(reply) is None


async def test_it_goes_from_a_body_whose_prompt_is_not_understood() -> None:
    body = json.dumps({"model": MODEL, "messages": [], **XARGS, "chat_template": 7}).encode()
    async with serving(counting()) as (_, channel):
        exchange, reply = await asked(channel, body)
        await exchange.end()
        assert b"report" not in (forwarded(reply) or b"report")


async def test_it_goes_together_with_an_alias() -> None:
    body = chat(LONG, **XARGS).replace(MODEL.encode(), ALIAS.encode())
    async with serving(counting(renaming())) as (_, channel):
        exchange, reply = await asked(channel, body)
        await exchange.end()
        sent = json.loads(forwarded(reply) or b"{}")
        assert (sent["model"], sent["vllm_xargs"]) == (MODEL, {})


async def test_a_turn_with_it_goes_to_the_home_of_the_one_without() -> None:
    async with serving(counting()) as (_, channel):
        exchange = Exchange(channel)
        await exchange.headers()
        first = await exchange.body(chat(LONG))
        again = Exchange(channel)
        await again.headers()
        second = await again.body(chat(LONG, **XARGS))
        await exchange.end()
        await again.end()
        assert picked(first)[0] == picked(second)[0]
