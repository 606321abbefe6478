"""Aliases through real Envoy, to engines that do not know them."""

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from extproc.demo.engine import DEMO_MODEL
from extproc.demo.stack import ENVOY, Stack
from tests.e2e.chat_engine import chat_engine
from tests.e2e.client import post
from tests.e2e.conftest import quick_stack

ALIAS = "any-model"
QUESTION = "What is a harbour? " * 40


def renaming(mode: str, port: int | None = None, mode_override: bool = True) -> Stack:
    """A stack whose engines know no alias. port: of the only engine, if it is another."""
    stack = quick_stack(mode, proxy={"mode_override": mode_override}, models_endpoint=True)
    (pool,) = stack.config["pools"]
    pool["models"][0] |= {"aliases": [ALIAS], "rewrite_aliases": True}
    if port is not None:
        pool["instances"] = [{"endpoint": f"127.0.0.1:{port}"}]
    return stack


@pytest.fixture(scope="module", params=["BUFFERED", "FULL_DUPLEX_STREAMED"])
def renaming_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    with renaming(request.param) as stack:
        yield stack


def question(words: str = QUESTION, **more: Any) -> dict[str, Any]:
    said = f'{words} The name: "model": "{DEMO_MODEL}".'
    return {"model": ALIAS, "messages": [{"role": "user", "content": said}], **more}


async def test_an_answer_gives_the_alias_and_its_own_length(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    url = f"{renaming_stack.url}/v1/chat/completions"
    async with http.post(url, json=question(max_tokens=8)) as response:
        body = await response.json()
    assert response.status == 200, body
    assert body["model"] == ALIAS
    assert body["usage"]["completion_tokens"] == 8


async def test_every_event_of_a_streamed_answer_gives_the_alias(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    url = f"{renaming_stack.url}/v1/chat/completions"
    wanted = question(max_tokens=1000, ignore_eos=True, stream=True)
    async with http.post(url, json=wanted) as response:
        lines = [line for line in (await response.read()).split(b"\n\n") if line]
    assert lines[-1] == b"data: [DONE]"
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert len(events) >= 1000
    assert {event["model"] for event in events} == {ALIAS}


async def test_a_turn_by_the_alias_and_one_by_the_name_find_the_same_prefix(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    url = f"{renaming_stack.url}/v1/chat/completions"
    words = "The ships bring spice and salt. " * 40
    first = await post(http, url, question(words, max_tokens=4))
    second = await post(http, url, question(words, max_tokens=4) | {"model": DEMO_MODEL})
    assert first.why.startswith("new")
    assert second.why.startswith("home")
    assert second.served == first.served
    assert second.cached_tokens == (second.usage["prompt_tokens"] - 1) // 16 * 16


async def test_a_large_body_by_the_alias_is_answered(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    url = f"{renaming_stack.url}/v1/chat/completions"
    answer = await post(http, url, question("word " * 100_000, max_tokens=2))
    assert (answer.status, answer.usage["completion_tokens"]) == (200, 2)


async def test_an_error_of_the_engine_comes_as_it_is(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    url = f"{renaming_stack.url}/v1/chat/completions"
    answer = await post(http, url, question(max_tokens=0))
    assert answer.status == 400
    assert "max_tokens" in json.loads(answer.text)["error"]["message"]


async def test_the_list_of_models_has_the_alias(
    renaming_stack: Stack, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{renaming_stack.url}/v1/models") as response:
        listed = await response.json()
    assert [one["id"] for one in listed["data"]] == [DEMO_MODEL, ALIAS]
    assert "x-served-by" not in response.headers


# --- engines that answer in odd ways ---

GENERATED = f'"model": "{DEMO_MODEL}"'
WHOLE = json.dumps(
    {"id": DEMO_MODEL, "model": DEMO_MODEL, "choices": [{"message": {"content": GENERATED}}]}
).encode()
EVENTS = b"data: " + WHOLE + b"\n\n: ping\n\ndata: " + WHOLE + b"\n\ndata: [DONE]\n\n"


def by_alias(body: bytes) -> bytes:
    name, alias = f'"model": "{DEMO_MODEL}", "ch', f'"model": "{ALIAS}", "ch'
    return body.replace(name.encode(), alias.encode())


class OddEngine:
    """Answers as the header `x-how` of the request says; keeps what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.accepted: list[str | None] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.accepted.append(request.headers.get("accept-encoding"))
        how = request.headers["x-how"]
        if how == "whole":
            return web.Response(body=WHOLE, content_type="application/json")
        if how == "gzip":
            headers = {"content-encoding": "gzip", "content-type": "application/json"}
            return web.Response(body=gzip.compress(WHOLE), headers=headers)
        response = web.StreamResponse()
        body = EVENTS if how == "events" else WHOLE
        response.content_type = "text/event-stream" if how == "events" else "application/json"
        await response.prepare(request)
        for at in range(len(body)):
            await response.write(body[at : at + 1])
        return response


async def ask_in_every_way(engine: OddEngine, stack: Stack, http: aiohttp.ClientSession) -> None:
    body = f'{{"messages":[], "x" : 1.0,"model":"{ALIAS}"}}'.encode()
    for how, expected in {
        "whole": by_alias(WHOLE),
        "bytes": by_alias(WHOLE),
        "events": by_alias(EVENTS),
        "gzip": WHOLE,
    }.items():
        url = f"{stack.url}/v1/chat/completions"
        async with http.post(url, data=body, headers={"x-how": how}) as response:
            assert response.status == 200
            assert await response.read() == expected, how
    assert engine.bodies == [body.replace(ALIAS.encode(), DEMO_MODEL.encode())] * 4
    assert engine.accepted == ["identity"] * 4


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_the_alias_comes_back_however_the_engine_answers(
    mode: str, http: aiohttp.ClientSession
) -> None:
    engine = OddEngine()
    async with chat_engine(engine.answer) as port:
        with renaming(mode, port) as stack:
            await ask_in_every_way(engine, stack, http)


@pytest.mark.parametrize("shown", ["BUFFERED", "BUFFERED_PARTIAL", "STREAMED"])
async def test_the_alias_comes_back_where_envoy_shows_answers_unasked(
    shown: str, http: aiohttp.ClientSession
) -> None:
    engine = OddEngine()
    async with chat_engine(engine.answer) as port:
        with renaming("BUFFERED", port, mode_override=False) as stack:
            stack.kill(ENVOY)
            file = stack.folder / "envoy.yaml"
            pattern = r"( +)(request_body_mode: .*\n)"
            more = rf"\1\2\1response_body_mode: {shown}\n"
            written, places = re.subn(pattern, more, file.read_text())
            assert places == 1
            file.write_text(written)
            await asyncio.to_thread(stack.start, ENVOY)
            await ask_in_every_way(engine, stack, http)


async def test_without_a_rewrite_the_alias_reaches_the_engine(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    answer = await post(http, f"{stack.url}/v1/chat/completions", question())
    assert answer.status == 404
