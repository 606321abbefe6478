import asyncio
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.engine import DEMO_TOKENIZER
from extproc.demo.prefix_cache import Removed, Stored
from extproc.errors import ConfigError
from extproc.prompt import ServedModel, parse_body
from tests.demo.client import Client, assistant, engine, system, until, user

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RULES = "Answer in full sentences, and say where each number in your answer comes from. " * 14


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with engine() as client:
        yield client


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices)


async def test_every_answer_says_who_served_it(client: Client) -> None:
    for path in ("/health", "/v1/models", "/version", "/metrics"):
        async with client.http.get(path) as response:
            assert response.status == 200
            assert response.headers["x-served-by"] == "engine-1"


async def test_models_lists_the_model_and_its_context(client: Client) -> None:
    async with client.http.get("/v1/models") as response:
        (model,) = (await response.json())["data"]
    assert (model["id"], model["object"]) == ("demo-model", "model")
    assert model["max_model_len"] == 4095 * 16


async def test_prompt_tokens_are_those_of_the_models_template_and_tokenizer(client: Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "Why do leaves fall?"}]}'
    model = ServedModel.load("demo-model", DEMO_TOKENIZER)
    (ids,) = model.token_ids(parse_body(CHAT, body))
    _, answer = await client.post(CHAT, body)
    assert answer["usage"]["prompt_tokens"] == len(ids) // 4


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_streamed_answer_is_the_whole_one_in_pieces(client: Client, path: str) -> None:
    body = {"messages": [user("Name it.")], "prompt": "Name it.", "max_tokens": 7}
    _, whole = await client.post(path, body)
    chunks = await client.stream(path, body)
    (choice,) = whole["choices"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert len(text.split()) == 7
    assert text_of(chunks) == text
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_streamed_chat_opens_with_the_role(client: Client) -> None:
    chunks = await client.stream(CHAT, {"messages": [user("Hello")]})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_comes_last_and_without_choices_when_it_is_asked_for(client: Client) -> None:
    messages = [user("Hello")]
    whole = await client.chat(messages)
    chunks = await client.stream(
        CHAT, {"messages": messages, "stream_options": {"include_usage": True}}
    )
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_answer_ends_by_itself_unless_told_otherwise(client: Client) -> None:
    ended = await client.chat([user("Hello")])
    words = ended["choices"][0]["message"]["content"].split()
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["usage"]["completion_tokens"] == len(words) + 1
    forced = await client.chat([user("Hello")], max_tokens=200, ignore_eos=True)
    assert forced["choices"][0]["finish_reason"] == "length"
    assert forced["usage"]["completion_tokens"] == 200


async def test_the_same_prompt_has_the_same_answer_on_every_engine(client: Client) -> None:
    mine = await client.chat([user("Hello")])
    async with engine(name="engine-2") as other:
        theirs = await other.chat([user("Hello")])
    assert mine["choices"] == theirs["choices"]
    assert mine["choices"] != (await client.chat([user("Hello?")]))["choices"]


async def test_a_turn_hits_all_full_blocks_of_the_turn_before_and_its_answer(
    client: Client,
) -> None:
    messages = [system(RULES)]
    computed = []
    for number in range(5):
        messages.append(user(f"Question {number}: and then?"))
        answer = await client.chat(messages)
        choice, usage = answer["choices"][0], answer["usage"]
        computed.append((cached(answer), usage["prompt_tokens"] + usage["completion_tokens"] - 1))
        messages.append(assistant(choice["message"]["content"]))
    assert computed[0][0] == 0
    for (_, before), (hit, _) in pairwise(computed):
        assert hit == before // 16 * 16


async def test_a_completion_hits_its_own_answer_too(client: Client) -> None:
    prompt = RULES + "\nUser: what then?\nAssistant:"
    _, first = await client.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 40})
    prompt += first["choices"][0]["text"] + "\nUser: and why?\nAssistant:"
    _, second = await client.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 1})
    usage = first["usage"]
    computed = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    assert cached(second) == computed // 16 * 16


async def test_only_a_completion_begins_with_a_blank(client: Client) -> None:
    _, completion = await client.post(COMPLETIONS, {"prompt": "Once upon a time"})
    assert re.fullmatch(r"( \w+)+", completion["choices"][0]["text"])
    chat = await client.chat([user("Once upon a time")])
    assert re.fullmatch(r"\w+( \w+)+", chat["choices"][0]["message"]["content"])


async def test_token_ids_and_lists_of_prompts_are_served(client: Client) -> None:
    ids = list(range(300, 333))
    _, answer = await client.post(COMPLETIONS, {"prompt": [ids, ids], "max_tokens": 2, "n": 2})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]
    assert answer["usage"]["prompt_tokens"] == 66
    assert answer["usage"]["completion_tokens"] == 8


async def test_a_cache_salt_keeps_tenants_apart(client: Client) -> None:
    hits = [
        cached(await client.chat([system(RULES)], **({"cache_salt": salt} if salt else {})))
        for salt in ("a", "b", "", "a")
    ]
    assert hits[:3] == [0, 0, 0]
    assert hits[3] > 0


async def test_a_small_cache_evicts_the_conversation_that_was_idle_longest() -> None:
    async with engine(blocks=1 + 60) as client:
        first, second, third = ([system(name + RULES)] for name in "ABC")
        blocks = (await client.chat(first, max_tokens=1))["usage"]["prompt_tokens"] // 16
        assert 20 < blocks < 30
        await client.chat(second, max_tokens=1)
        assert cached(await client.chat(first, max_tokens=1)) > 0
        await client.chat(third, max_tokens=1)
        assert cached(await client.chat(first, max_tokens=1)) == blocks * 16
        assert cached(await client.chat(second, max_tokens=1)) < blocks * 16


async def test_metrics_are_the_sums_of_what_the_answers_said(client: Client) -> None:
    answers = [
        await client.chat([system(RULES), user(text)], max_tokens=limit)
        for text, limit in (("one", 3), ("one", 3), ("two", 400))
    ]
    usages = [answer["usage"] for answer in answers]
    hits = sum(cached(answer) for answer in answers)
    prompts = sum(usage["prompt_tokens"] for usage in usages)
    generated = sum(usage["completion_tokens"] for usage in usages)
    values = await client.metrics()
    assert hits > 0
    expected = {
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "vllm:prefix_cache_queries_total": prompts,
        "vllm:prefix_cache_hits_total": hits,
        "vllm:prompt_tokens_total": prompts,
        "vllm:prompt_tokens_by_source_total{local_compute}": prompts - hits,
        "vllm:prompt_tokens_by_source_total{local_cache_hit}": hits,
        "vllm:generation_tokens_total": generated,
        "vllm:request_success_total{length}": 2,
        "vllm:request_success_total{stop}": 1,
        "vllm:request_prefill_time_seconds_count": 3,
    }
    assert {name: values[name] for name in expected} == expected
    assert values["process_start_time_seconds"] > 0


async def test_metrics_say_how_large_the_cache_is() -> None:
    async with (
        engine(blocks=77, block_size=32) as client,
        client.http.get("/metrics") as response,
    ):
        page = await response.text()
    (line,) = [line for line in page.splitlines() if line.startswith("vllm:cache_config_info{")]
    assert 'block_size="32"' in line
    assert 'num_gpu_blocks="77"' in line
    assert "model_name" not in line, "vLLM's has none there"


BAD_BODIES: list[tuple[str, Any, int, str]] = [
    (CHAT, b'{"messages": [', 400, "BadRequestError"),
    (CHAT, b"[]", 400, "BadRequestError"),
    (CHAT, {"messages": "hello"}, 400, "BadRequestError"),
    (CHAT, {}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x")], "max_tokens": 0}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x")], "max_tokens": "9"}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x")], "cache_salt": ""}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x")], "tools": []}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x")], "max_tokens": 70_000}, 400, "BadRequestError"),
    (CHAT, {"messages": [user("x " * 70_000)]}, 400, "BadRequestError"),
    (COMPLETIONS, {"prompt": 5}, 400, "BadRequestError"),
    (COMPLETIONS, {"prompt": ""}, 400, "BadRequestError"),
    (COMPLETIONS, {"prompt": "x", "model": "gpt-5"}, 404, "NotFoundError"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind"), BAD_BODIES)
async def test_a_bad_request_gets_an_openai_error_and_leaves_nothing_behind(
    client: Client, path: str, body: Any, status: int, kind: str
) -> None:
    got, answer = await client.post(path, body)
    error = answer["error"]
    assert (got, error["code"], error["type"]) == (status, status, kind)
    assert error["message"]
    assert (await client.metrics())["vllm:prefix_cache_queries_total"] == 0


async def test_requests_wait_their_turn_and_a_client_that_leaves_frees_its_blocks() -> None:
    """The first prefill takes an hour, so what follows waits for as long as the first is there."""
    async with engine(request_ms=3_600_000, blocks=100) as client:
        virtual = client.serving.engine
        first = asyncio.create_task(client.chat([user("first")]))
        await until(lambda: virtual.running > 0)
        second = asyncio.create_task(client.chat([user("second")]))
        await until(lambda: virtual.waiting > 0)
        values = await client.metrics()
        assert values["vllm:num_requests_running"] == 1
        assert values["vllm:num_requests_waiting"] == 1
        assert values["vllm:kv_cache_usage_perc"] > 0

        first.cancel()
        await until(lambda: virtual.waiting == 0)
        assert virtual.running == 1
        second.cancel()
        await until(lambda: virtual.running == 0)
        values = await client.metrics()
        assert values["vllm:kv_cache_usage_perc"] == 0
        assert values["vllm:prompt_tokens_total"] == 0


async def test_a_client_that_leaves_a_stream_keeps_what_was_computed_cached() -> None:
    async with engine(decode_ms=1) as client:
        messages = [system(RULES)]
        body = {"messages": messages, "stream": True, "max_tokens": 60_000, "ignore_eos": True}
        async with client.http.post(CHAT, json=body) as response:
            await response.content.readuntil(b"\n\n")
        await until(lambda: client.serving.engine.running == 0)
        answer = await client.chat(messages, max_tokens=1)
        assert cached(answer) == (answer["usage"]["prompt_tokens"] - 1) // 16 * 16
        assert (await client.metrics())["vllm:request_success_total{abort}"] == 0


@pytest.mark.parametrize("limit", [{"max_num_seqs": 1}, {"blocks": 1 + 40}])
async def test_a_request_waits_for_a_place_and_for_blocks(limit: dict[str, Any]) -> None:
    """The first answer's second token would take an hour; its client leaves after one."""
    async with engine(decode_ms=3_600_000, **limit) as client:
        virtual = client.serving.engine
        body = {"messages": [system(RULES)], "stream": True, "cache_salt": "first"}
        async with client.http.post(CHAT, json=body) as response:
            await response.content.readuntil(b"\n\n")
            second = asyncio.create_task(client.chat([system(RULES)], max_tokens=1))
            await until(lambda: virtual.waiting > 0)
            assert (virtual.running, virtual.waiting) == (1, 1)
        answer = await second
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_the_caches_events_count_what_the_answers_need() -> None:
    events: list[Stored | Removed] = []
    async with engine(events.append) as client:
        answer = await client.chat([system(RULES)], max_tokens=50, ignore_eos=True)
    usage = answer["usage"]
    computed = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    stored = [event for event in events if isinstance(event, Stored)]
    assert stored == events
    assert sum(len(event.hashes) for event in stored) == computed // 16
    assert stored[0].parent is None
    for before, after in pairwise(stored):
        assert after.parent == before.hashes[-1]


async def test_a_port_in_use_is_named(client: Client) -> None:
    port = client.serving.port
    with pytest.raises(ConfigError, match=f"engine-9: cannot listen on 127.0.0.1:{port}"):
        async with engine(name="engine-9", port=port):
            pass


async def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        async with engine(tokenizer=tmp_path):
            pass
