"""A client of all four APIs: what it is told of an answer, whatever the API calls it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.vllm.stack import SERVED

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"


@dataclass(frozen=True, slots=True)
class Answer:
    """served: the engine's ip:port, by Envoy. why: Homing's reason. prompt_tokens: all of them."""

    served: str
    why: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


async def ask(http: aiohttp.ClientSession, url: str, path: str, body: Mapping[str, Any]) -> Answer:
    """One request, its answer read to the end. Raises AssertionError where it is none."""
    async with http.post(url + path, json=body) as response:
        raw = await response.read()
        assert response.status == 200, f"{path} {response.status}: {raw[:500]!r}"
        served = response.headers.get(SERVED, "")
        why = response.headers.get("x-homing-why", "")
        streamed = response.content_type == "text/event-stream"
    text, usage = _of_stream(raw) if streamed else _whole(path, json.loads(raw))
    return Answer(served, why, text, *_tokens(path, usage))


def _whole(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    match path:
        case "/v1/chat/completions":
            text = body["choices"][0]["message"]["content"]
        case "/v1/completions":
            text = body["choices"][0]["text"]
        case "/v1/responses":
            parts = [item for item in body["output"] if item["type"] == "message"]
            text = "".join(part["text"] for item in parts for part in item["content"])
        case _:
            text = "".join(part.get("text", "") for part in body["content"])
    return text or "", body["usage"]


def _of_stream(raw: bytes) -> tuple[str, dict[str, Any]]:
    """A chat's."""
    lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if line]
    assert lines[-1] == b"[DONE]", "the answer was cut"
    chunks = [json.loads(line) for line in lines[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas), chunks[-1]["usage"]


def _tokens(path: str, usage: dict[str, Any]) -> tuple[int, int, int]:
    """(of the prompt, of them cached, of the answer)."""
    if path == MESSAGES:
        cached, stored = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
        return usage["input_tokens"] + cached + stored, cached, usage["output_tokens"]
    if path == RESPONSES:
        details = usage["input_tokens_details"]
        return usage["input_tokens"], details["cached_tokens"], usage["output_tokens"]
    details = usage.get("prompt_tokens_details") or {"cached_tokens": 0}
    return usage["prompt_tokens"], details["cached_tokens"], usage["completion_tokens"]
