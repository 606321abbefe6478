"""A prefix that a crowd comes for gets another holder, in the server as in the lab."""

import pytest

from tests.serve.proxy import DESTINATION, LONG, Exchange, chat, config, serving

TURNS = 10
TAIL = " ship" * 40
"""All turns' together take less than the prefix, so that none would leave home for itself alone."""


@pytest.mark.parametrize("is_crowd", [True, False])
async def test_what_many_share_gets_another_holder_and_one_growing_chat_does_not(
    is_crowd: bool,
) -> None:
    (pool,) = config().pools
    slow = pool.model_copy(update={"prefill_rate": 10.0})
    async with serving(config(pools=(slow,))) as (_, channel):
        words, picked = LONG * 2, set()
        for turn in range(TURNS):
            text = f"{words} {turn}{TAIL}" if turn else words
            exchange = Exchange(channel)
            await exchange.headers()
            reply = await exchange.body(chat(text))
            headers = reply.request_body.response.header_mutation.set_headers
            endpoints = {one.header.key: one.header.raw_value.decode() for one in headers}
            picked.add(endpoints[DESTINATION].partition(",")[0])
            if not turn:
                await exchange.end()
            elif not is_crowd:
                words = text
        assert (len(picked) > 1) == is_crowd
