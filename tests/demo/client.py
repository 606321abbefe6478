"""A client of a simulated engine: real HTTP on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.engine import EngineSettings, Serving, serving
from extproc.demo.prefix_cache import Listener

INSTANT: dict[str, Any] = {
    "prefill_tokens_per_s": 1e12,
    "request_ms": 0,
    "decode_ms": 0,
    "decode_ms_per_running": 0,
}

LIMIT_S = 60


@dataclass
class Client:
    """One engine and a session with it."""

    serving: Serving
    http: aiohttp.ClientSession

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        """(status, decoded answer)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(path, data=data) as response:
            return response.status, await response.json()

    async def chat(self, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        status, answer = await self.post("/v1/chat/completions", {"messages": messages, **fields})
        assert status == 200, answer
        return dict(answer)

    async def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks up to `[DONE]`, which must come last."""
        async with self.http.post(path, json=body | {"stream": True}) as response:
            assert response.content_type == "text/event-stream"
            text = (await response.read()).decode()
        assert text.endswith("\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") for event in events)
        *chunks, done = [event.removeprefix("data: ") for event in events]
        assert done == "[DONE]"
        return [json.loads(chunk) for chunk in chunks]

    async def metrics(self) -> dict[str, float]:
        """Samples by name; one with a label of its own as `name{value}`."""
        async with self.http.get("/metrics") as response:
            page = await response.text()
        values = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                own = [v for k, v in sample.labels.items() if k not in ("engine", "model_name")]
                values[sample.name + (f"{{{own[0]}}}" if len(own) == 1 else "")] = sample.value
        return values


@asynccontextmanager
async def engine(listener: Listener | None = None, **settings: Any) -> AsyncIterator[Client]:
    """An engine without delays, unless settings say otherwise, on a port of its own."""
    async with (
        serving(
            EngineSettings(**INSTANT | {"port": 0, "name": "engine-1"} | settings), listener
        ) as running,
        aiohttp.ClientSession(running.url) as http,
    ):
        yield Client(running, http)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the engine in it is so far; TimeoutError where it never is."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # the engine has no event for its numbers
            await asyncio.sleep(0)
