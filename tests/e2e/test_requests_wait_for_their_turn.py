"""Flow control through real Envoy: what waits is placed, after the message's time-out, too."""

import asyncio

import aiohttp

from extproc.demo.engine import EngineSettings
from extproc.demo.stack import Stack
from tests.e2e.client import Answer, post
from tests.e2e.conftest import PATIENT

RATE = 4_000.0
LONG = "The ships bring spice and salt to the harbour. " * 400
"""More than a second of prefill."""

SLOW = EngineSettings(
    prefill_tokens_per_s=RATE, request_ms=1.0, decode_ms=0.1, decode_ms_per_running=0.0
)
TIME_OUT_MS = 400


async def test_who_waits_for_longer_than_a_messages_time_out_is_still_placed_by_homing(
    http: aiohttp.ClientSession,
) -> None:
    """One engine. A short prompt that comes last is served before a long one that waits, too."""
    limits = {"limits": {"pick_timeout_ms": TIME_OUT_MS - 50}}
    stack = Stack(
        1, engine=SLOW, config=PATIENT | limits, envoy={"message_timeout_ms": TIME_OUT_MS}
    )
    with stack:
        served: list[str] = []

        async def ask(name: str, words: str) -> Answer:
            message = {"role": "user", "content": f"{name}. {words}"}
            body = {"model": stack.model, "messages": [message], "max_tokens": 1}
            answer = await post(http, f"{stack.url}/v1/chat/completions", body)
            served.append(name)
            return answer

        for number in range(50):
            await ask(f"{number}", "A line or two, so that the engine's speed is known." * 2)
        await _until_learnt(http, stack)
        served.clear()
        tasks = []
        for name, words in (("first", LONG), ("second", LONG), ("third", "Short.")):
            tasks.append(asyncio.ensure_future(ask(name, words)))
            await asyncio.sleep(0.1)  # what is tested is an order of arrival
        answers = await asyncio.gather(*tasks)
        assert [answer.status for answer in answers] == [200] * 3
        assert all(answer.why and "load" not in answer.why for answer in answers)
        assert served == ["first", "third", "second"]
        metrics = await _text(http, f"{stack.admin_url}/metrics")
        assert 'homing_stage_seconds_count{stage="wait"} 2.0' in metrics


async def _until_learnt(http: aiohttp.ClientSession, stack: Stack) -> None:
    """The engine's counters have been read, and say what its prefills take."""
    async with asyncio.timeout(30):
        while True:
            async with http.get(f"{stack.admin_url}/pools") as response:
                (pool,) = await response.json()
            if pool["speeds_learnt"]:
                return
            await asyncio.sleep(0.1)


async def _text(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as response:
        return await response.text()
