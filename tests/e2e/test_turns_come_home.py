"""Conversations through real Envoy: the engines' own counters say who served each turn."""

import aiohttp
import pytest

from extproc.demo.stack import Stack
from tests.e2e.client import Conversation, served_requests

PARAGRAPH = "{name}: its harbour lies between two hills, and its ships bring spice and salt. "


def conversation(stack: Stack, name: str, *, chat: bool, stream: bool) -> Conversation:
    return Conversation(stack.model, chat, stream, PARAGRAPH.format(name=name) * 12)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
async def test_every_later_turn_goes_where_the_earlier_ones_were_served(
    stack: Stack, http: aiohttp.ClientSession, chat: bool, stream: bool
) -> None:
    names = [f"{place}-{chat}-{stream}" for place in ("Aden", "Basra", "Cadiz", "Dover")]
    talks = [conversation(stack, name, chat=chat, stream=stream) for name in names]
    homes: dict[str, str] = {}
    for number in range(4):
        for name, talk in zip(names, talks, strict=True):
            before = await served_requests(http, stack)
            answer = await talk.turn(http, stack, f"What came in ship {number}?")
            after = await served_requests(http, stack)
            (engine,) = [one for one in after if after[one] != before[one]]
            assert after[engine] == before[engine] + 1
            assert engine == homes.setdefault(name, engine)
            assert answer.why.startswith("home" if number else "new")
    assert len(set(homes.values())) > 1, "all conversations live on one instance"


async def test_later_turns_find_the_prompt_before_them_in_the_cache(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    talk = conversation(stack, "Ghent", chat=True, stream=True)
    before = 0
    for number in range(4):
        answer = await talk.turn(http, stack, f"And ship {number}?")
        assert answer.cached_tokens >= before // stack.block_size * stack.block_size
        before = answer.usage["prompt_tokens"]


async def test_what_homing_predicts_is_what_the_engine_reports_for_a_prompt_asked_again(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    talk = conversation(stack, "Lagos", chat=True, stream=False)
    await talk.turn(http, stack, "Once?")
    talk.said.clear()
    again = await talk.turn(http, stack, "Once?")
    tokens = again.usage["prompt_tokens"]
    assert f"cached={again.cached_tokens}/{tokens}" in again.why
    assert again.cached_tokens == (tokens - 1) // stack.block_size * stack.block_size


async def test_a_body_of_a_megabyte_comes_home(stack: Stack, http: aiohttp.ClientSession) -> None:
    opening = "".join(f"Crate {n} holds {n * 7919 % 10007} bolts. " for n in range(36_000))
    assert len(opening) > 1_000_000
    talk = Conversation(stack.model, chat=True, stream=False, opening=opening)
    first = await talk.turn(http, stack, "How many bolts?")
    second = await talk.turn(http, stack, "And nuts?")
    assert second.served == first.served
    assert second.cached_tokens >= first.usage["prompt_tokens"] // 16 * 16


async def test_a_request_under_another_salt_finds_nothing(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    talk = conversation(stack, "Malmo", chat=True, stream=False)
    await talk.turn(http, stack, "Here?")
    other = conversation(stack, "Malmo", chat=True, stream=False)
    other.salt = "another tenant"
    answer = await other.turn(http, stack, "Here?")
    assert answer.cached_tokens == 0
    assert answer.why.startswith("new")
