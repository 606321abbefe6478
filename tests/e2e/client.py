"""A client behind Envoy, and the engines' own counters: what really happened, told by neither."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.stack import Stack


@dataclass(frozen=True, slots=True)
class Answer:
    """status and headers as the client saw them; usage and text where it was an answer."""

    status: int
    headers: Mapping[str, str]
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def served(self) -> str:
        return self.headers["x-served-by"]

    @property
    def why(self) -> str:
        return self.headers.get("x-homing-why", "")

    @property
    def cached_tokens(self) -> int:
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


async def post(
    http: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any] | bytes,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request, its answer read to the end, streamed or not."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **(headers or {})}
    async with http.post(url, data=BytesIO(data), headers=sent) as response:
        raw = await response.read()
        if response.status != 200:
            return Answer(response.status, response.headers, raw.decode())
        if response.content_type == "text/event-stream":
            return _streamed(response.headers, raw)
        return _whole(response.headers, json.loads(raw))


def _whole(headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Answer(200, headers, text, body["usage"])


def _streamed(headers: Mapping[str, str], raw: bytes) -> Answer:
    lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if line]
    assert lines[-1] == b"[DONE]", "the answer was cut"
    text, usage = "", {}
    for chunk in map(json.loads, lines[:-1]):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    return Answer(200, headers, text, usage)


@dataclass(slots=True)
class Conversation:
    """A chat, or a text that grows, each turn with the answers before it."""

    model: str
    chat: bool
    stream: bool
    opening: str
    salt: str = ""
    said: list[tuple[str, str]] = field(default_factory=list)

    async def turn(
        self,
        http: aiohttp.ClientSession,
        stack: Stack,
        words: str,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        body: dict[str, Any] = {"model": self.model, "max_tokens": 40, "stream": self.stream}
        if self.salt:
            body["cache_salt"] = self.salt
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.chat:
            path, body["messages"] = "/v1/chat/completions", self._messages(words)
        else:
            path, body["prompt"] = "/v1/completions", self._text(words)
        answer = await post(http, stack.url + path, body, headers)
        assert answer.status == 200, answer
        self.said.append((words, answer.text))
        return answer

    def _messages(self, words: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.opening}]
        for question, reply in self.said:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": reply})
        return [*messages, {"role": "user", "content": words}]

    def _text(self, words: str) -> str:
        before = "".join(f"\nQ: {question}\nA:{reply}" for question, reply in self.said)
        return f"{self.opening}{before}\nQ: {words}\nA:"


async def served_requests(http: aiohttp.ClientSession, stack: Stack) -> dict[str, int]:
    """Requests that each engine says it has finished."""
    return {
        name: await _counter(http, stack.engine_url(name), "vllm:request_success_total")
        for name in stack.engines
        if stack.processes[name].running
    }


async def _counter(http: aiohttp.ClientSession, url: str, name: str) -> int:
    async with http.get(f"{url}/metrics") as response:
        page = await response.text()
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    return int(sum(sample.value for sample in samples if sample.name == name))


async def samples(http: aiohttp.ClientSession, url: str, name: str, label: str) -> dict[str, float]:
    """The samples of a metric by one of its labels, summed over the others."""
    async with http.get(f"{url}/metrics") as response:
        page = await response.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                value = sample.labels.get(label, "")
                found[value] = found.get(value, 0) + sample.value
    return found
