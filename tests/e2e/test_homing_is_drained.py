"""SIGTERM while clients are served through real Envoy: nothing is lost, nothing is cut."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from signal import SIGTERM

import aiohttp
import pytest

from extproc.demo.processes import StackError
from extproc.demo.stack import HOMING, Stack
from tests.e2e.client import Answer, post
from tests.e2e.conftest import PATIENT, QUICK

SLOW = replace(QUICK, decode_ms=20.0)
"""An answer of 400 tokens takes eight seconds, longer than the drain."""

LONG_ANSWERS = 6


def question(stack: Stack, name: str, tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {name}: " + "what is a harbour? " * 40}]
    return {
        "model": stack.model,
        "messages": messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@asynccontextmanager
async def short_requests(http: aiohttp.ClientSession, stack: Stack) -> AsyncIterator[list[Answer]]:
    """Four clients that ask one short question after the other; the answers so far."""
    answers: list[Answer] = []
    url = f"{stack.url}/v1/chat/completions"

    async def client(first: int) -> None:
        for number in range(first, 1_000_000, 4):
            answer = await post(http, url, question(stack, f"short {number}", 2))
            answers.append(answer)

    clients = [asyncio.create_task(client(first)) for first in range(4)]
    try:
        yield answers
    finally:
        for task in clients:
            task.cancel()
        for task in clients:
            with suppress(asyncio.CancelledError):
                await task


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_a_drain_loses_no_request_and_cuts_no_answer(
    mode: str, http: aiohttp.ClientSession
) -> None:
    stack = Stack(
        engine=SLOW,
        request_body_mode=mode,
        config={**PATIENT, "drain": {"delay_s": 2, "timeout_s": 600}},
        envoy={"message_timeout_ms": 30_000},
    )
    with stack:
        url = f"{stack.url}/v1/chat/completions"
        long = [
            asyncio.create_task(post(http, url, question(stack, f"long {number}", 400)))
            for number in range(LONG_ANSWERS)
        ]
        while await in_flight(http, stack) < LONG_ANSWERS:
            await asyncio.sleep(0.01)
        async with short_requests(http, stack) as answers:
            await until(lambda: len(answers) >= 20)
            homing = stack.processes[HOMING]
            homing.signal(SIGTERM)
            await until(lambda: not homing.running)
            with pytest.raises(StackError, match="ended with status 0"):
                homing.check()
            assert not any(task.done() for task in long), "no answer was under way at the end"
            seen = len(answers)
            await until(lambda: len(answers) >= seen + 20)
        whole = await asyncio.gather(*long)
    assert Counter(answer.status for answer in (*answers, *whole)) == {
        200: len(answers) + LONG_ANSWERS
    }
    assert {answer.usage["completion_tokens"] for answer in answers} == {2}
    assert {answer.usage["completion_tokens"] for answer in whole} == {400}
    assert all(answer.why for answer in (*answers[:20], *whole))
    assert not any(answer.why for answer in answers[-10:])


async def in_flight(http: aiohttp.ClientSession, stack: Stack) -> int:
    async with http.get(f"{stack.admin_url}/pools") as answer:
        (pool,) = await answer.json()
    return sum(instance["in_flight"] for instance in pool["instances"])


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)
