"""What follows calls of tools is learnt from answers that real Envoy shows."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from extproc.demo.engine import DEMO_MODEL
from extproc.demo.stack import Stack
from extproc.routing.returns import SEEN
from tests.e2e.chat_engine import chat_engine
from tests.e2e.client import samples
from tests.e2e.conftest import quick_stack

TURNS = 8


class ToolEngine:
    """Every other answer calls a tool."""

    def __init__(self) -> None:
        self._calls = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        reason = "tool_calls" if self._calls else "stop"
        self._calls = not self._calls
        if not asked.get("stream"):
            return web.json_response({"choices": [{"finish_reason": reason}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        event = f"data: {json.dumps({'choices': [{'finish_reason': reason}]})}\n\n".encode()
        for at in range(0, len(event), 7):
            await response.write(event[at : at + 7])
        return response


async def ended(http: aiohttp.ClientSession, stack: Stack) -> None:
    """Envoy tells Homing of an answer's end after the client."""
    async with asyncio.timeout(20):
        while any((await samples(http, stack.admin_url, "homing_open_streams", "state")).values()):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_turns_after_calls_of_tools_are_told_from_the_others(
    mode: str, stream: bool, http: aiohttp.ClientSession
) -> None:
    async with chat_engine(ToolEngine().answer) as port:
        stack = quick_stack(mode, proxy={"mode_override": True})
        (pool,) = stack.config["pools"]
        pool["instances"] = [{"endpoint": f"127.0.0.1:{port}"}]
        pool |= {"session_header": "x-session", "hints": {"tool_calls": True}}
        with stack:
            said = [{"role": "user", "content": "The ships bring spice and salt. " * 40}]
            body = {"model": DEMO_MODEL, "messages": said, "stream": stream}
            for _ in range(TURNS):
                url, headers = f"{stack.url}/v1/chat/completions", {"x-session": "agent"}
                async with http.post(url, json=body, headers=headers) as response:
                    assert response.status == 200
                    assert b"finish_reason" in await response.read()
                await ended(http, stack)
            learnt = await samples(http, stack.admin_url, "homing_hints_total", "source")
            # Of either kind by itself; of both together it would be all but the first SEEN.
            assert learnt == {"learnt": 2 * (TURNS / 2 - SEEN)}
