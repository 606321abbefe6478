"""What Envoy, as shipped, does without Homing: PITFALLS "Fail-open is not what it seems"."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from extproc.demo.processes import StackError
from extproc.demo.stack import HOMING, Stack
from tests.e2e.client import Answer, Conversation, post
from tests.e2e.conftest import quick_stack

STEERING = {"x-gateway-destination-endpoint": "127.0.0.1:1"}
"""What a client may not do: name an address that nobody serves."""

CLIENTS = 8


def question(stack: Stack, number: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {number}: " + "what is a harbour? " * 40}]
    return {"model": stack.model, "messages": messages, "max_tokens": 8}


@asynccontextmanager
async def under_load(http: aiohttp.ClientSession, stack: Stack) -> AsyncIterator[list[Answer]]:
    """Clients that ask one question after the other while the block runs; the answers so far."""
    answers: list[Answer] = []
    url = f"{stack.url}/v1/chat/completions"

    async def client(first: int) -> None:
        for number in range(first, 1_000_000, CLIENTS):
            headers = STEERING if number % 2 else None
            answers.append(await post(http, url, question(stack, number), headers))

    clients = [asyncio.create_task(client(first)) for first in range(CLIENTS)]
    try:
        yield answers
    finally:
        for task in clients:
            task.cancel()
        for task in clients:
            with suppress(asyncio.CancelledError):
                await task


async def more(answers: list[Answer], count: int) -> list[Answer]:
    """Waits until so many further answers came, and returns them."""
    seen = len(answers)
    async with asyncio.timeout(60):
        while len(answers) < seen + count:
            await asyncio.sleep(0.01)
    return answers[seen:]


async def test_no_request_is_lost_when_homing_is_killed_under_load_and_turns_come_home_again(
    http: aiohttp.ClientSession,
) -> None:
    with quick_stack("BUFFERED") as stack:
        async with under_load(http, stack) as answers:
            await more(answers, 50)
            stack.kill(HOMING)
            await more(answers, 2 * CLIENTS)  # those that were under way
            down = await more(answers, 100)
            with pytest.raises(StackError):  # it is really down while the clients are served
                stack.check()
            await asyncio.to_thread(stack.start, HOMING)
            await _until_picked(answers)
        assert Counter(answer.status for answer in answers) == {200: len(answers)}
        assert {answer.why for answer in down} == {""}
        assert len({answer.served for answer in down}) == len(stack.engines)
        talk = Conversation(stack.model, chat=True, stream=True, opening="A long story. " * 60)
        turns = [await talk.turn(http, stack, f"Chapter {number}?") for number in range(4)]
        assert len({turn.served for turn in turns}) == 1
        assert all(turn.why.startswith("home") for turn in turns[1:])


async def _until_picked(answers: list[Answer]) -> None:
    """Envoy's health check has found Homing again."""
    for _ in range(200):
        if all(answer.why for answer in await more(answers, CLIENTS)):
            return
    pytest.fail("Envoy did not come back to Homing")


async def test_while_homing_is_down_full_duplex_requests_go_on_too(
    http: aiohttp.ClientSession,
) -> None:
    """The health check and the panic threshold of 0 do it; those under way at the kill are lost."""
    with quick_stack("FULL_DUPLEX_STREAMED") as stack:
        stack.kill(HOMING)
        url = f"{stack.url}/v1/chat/completions"
        async with asyncio.timeout(30):
            while (await post(http, url, question(stack, 0))).status != 200:
                await asyncio.sleep(0.05)
        answers = [await post(http, url, question(stack, n), STEERING) for n in range(12)]
        with pytest.raises(StackError):
            stack.check()
        assert [answer.status for answer in answers] == [200] * 12
        await asyncio.to_thread(stack.start, HOMING)
        async with asyncio.timeout(30):
            while not (await post(http, url, question(stack, 0))).why:
                await asyncio.sleep(0.05)
