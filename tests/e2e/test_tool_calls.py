"""Calls of tools are told from other answers where real Envoy shows them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from extproc.config import Config, Hints, Limits, Proxy
from extproc.envoy import bootstrap_yaml
from extproc.serve import App
from tests.e2e.chat_engine import chat_engine
from tests.envoy_config.configs import config
from tests.envoy_config.running import Envoy, running_envoy


class ToolEngine:
    """Two of three answers call a tool."""

    def __init__(self) -> None:
        self._answers = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self._answers += 1
        reason = "tool_calls" if self._answers % 3 else "stop"
        if not asked.get("stream"):
            return web.json_response({"choices": [{"finish_reason": reason}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        event = f"data: {json.dumps({'choices': [{'finish_reason': reason}]})}\n\n".encode()
        for at in range(0, len(event), 7):
            await response.write(event[at : at + 7])
        return response


def settings(mode: str, engine: int) -> Config:
    """What Homing and Envoy both are told."""
    made = config(
        [f"127.0.0.1:{engine}"],
        listen="127.0.0.1:0",
        request_body_mode=mode,
        message_timeout_ms=30_000,
    )
    (pool,) = made.pools
    pool = pool.model_copy(
        update={"session_header": "x-session", "hints": Hints(tool_calls=True)},
    )
    return made.model_copy(
        update={
            "pools": (pool,),
            "proxy": Proxy(mode_override=True),
            "limits": Limits(pick_timeout_ms=20_000),
        }
    )


@asynccontextmanager
async def homing(made: Config, folder: Path) -> AsyncIterator[tuple[App, Envoy]]:
    """Homing in this process, to be looked into, and Envoy as `homing envoy-config` has it."""
    app = App(made)
    port = await app.start()
    try:
        envoy = made.envoy.model_copy(update={"pickers": (f"127.0.0.1:{port}",)})
        bootstrap = bootstrap_yaml(made.model_copy(update={"envoy": envoy}))
        async with running_envoy(bootstrap, folder) as running:
            await running.until("cluster.homing.membership_healthy", 1)
            yield app, running
    finally:
        await app.stop()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_turns_after_calls_of_tools_are_told_from_the_others(
    mode: str, stream: bool, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with (
        chat_engine(ToolEngine().answer) as engine,
        homing(settings(mode, engine), tmp_path) as (app, envoy),
    ):
        said = [{"role": "user", "content": "The ships bring spice and salt. " * 40}]
        body = {"model": "model-0", "messages": said, "stream": stream}
        headers = {"x-session": "agent"}
        for _ in range(7):
            url = f"{envoy.url}/v1/chat/completions"
            async with http.post(url, json=body, headers=headers) as response:
                assert response.status == 200
                assert b"finish_reason" in await response.read()
            # The client has the end of an answer before Homing hears of it.
            async with asyncio.timeout(20):
                while app.processor.open_streams:
                    await asyncio.sleep(0.01)
        (client,) = app.pools[0].gaps._clients.values()
        assert (client.after_tool.count, client.others.count) == (4, 2)
