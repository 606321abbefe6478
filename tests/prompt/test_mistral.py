"""Mistral's own tokenizers: ids as vLLM 0.32.0 computes them with `--tokenizer-mode mistral`."""

import json
import lzma
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from extproc.errors import ConfigError, Unroutable
from extproc.prompt import (
    Chat,
    Plain,
    Prompt,
    ServedModel,
    block_keys,
    pack_ids,
    parse_body,
    root_seed,
    unpack_ids,
)
from extproc.prompt.modelfiles import mistral_file
from extproc.stages import Stages
from tests.prompt.conversations import text
from tests.prompt.mistral_files import MADE, REAL, write

RECORDED = Path(__file__).parent / "data" / "vllm-0.32.0-mistral.jsonl.xz"
ROOT = root_seed(secret=b"secret", model="m", block_size=16)
HELLO = [{"role": "user", "content": "hello"}]
Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    """By version; those that few tests need are loaded by them."""
    versions = ("v3t", "v7", "v13t", "v15t")
    folder = tmp_path_factory.mktemp("mistral")
    return {v: ServedModel.load("m", write(v, folder / v)) for v in versions}


def ids_of(model: ServedModel, path: str, body: object) -> list[list[int]]:
    prompt = parse_body(path, json.dumps(body).encode())
    return [unpack_ids(ids) for ids in model.token_ids(prompt)]


def chat_ids(model: ServedModel, messages: Messages, **fields: object) -> list[int]:
    (ids,) = ids_of(model, "/v1/chat/completions", {"messages": messages} | fields)
    return ids


def library_ids(file: Path, messages: Messages, **fields: Any) -> list[int]:
    """What `mistral-common` alone makes of the messages, without anything of ours."""
    request = ChatCompletionRequest.from_openai(messages=messages, **fields)
    ids: list[int] = MistralTokenizer.from_file(file).encode_chat_completion(request).tokens
    return ids


def test_ids_are_those_of_a_real_vllm(models: dict[str, ServedModel]) -> None:
    wrong, right = [], 0
    with lzma.open(RECORDED, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            recorded = json.loads(line)
            model = models[recorded["model"]]
            if ids_of(model, recorded["path"], recorded["request"]) == recorded["prompt_ids"]:
                right += 1
            else:
                wrong.append(number)
    assert (wrong, right) == ([], 1080)


def growing(random: Random) -> list[Messages]:
    """The messages of a conversation that Mistral's rules allow, turn by turn."""
    messages: Messages = []
    turns = []
    if random.random() < 0.5:
        messages.append({"role": "system", "content": text(random) or "s"})
    for number in range(random.randint(1, 4)):
        messages.append({"role": "user", "content": text(random) or "u"})
        turns.append([*messages])
        while random.random() < 0.4:
            call, arguments = f"call{number:05}", json.dumps({"a": text(random)})
            function = {"name": "f", "arguments": arguments}
            calls = [{"id": call, "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages.append({"role": "tool", "tool_call_id": call, "content": text(random)})
            turns.append([*messages])
        messages.append({"role": "assistant", "content": text(random) or "a"})
    return turns


FAST = ("v3", "v13t")
ALL = (*REAL, *MADE)
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]


@pytest.mark.parametrize(
    "version",
    [*FAST, *[pytest.param(v, marks=pytest.mark.slow) for v in ALL if v not in FAST]],
)
def test_ids_are_those_of_the_library(version: str, tmp_path: Path) -> None:
    """With what it remembers, and with nothing."""
    folder = write(version, tmp_path / version)
    model = ServedModel.load("m", folder)
    forgetful = ServedModel.load("m", folder, memo_bytes=0)
    (file,) = folder.iterdir()
    library = MistralTokenizer.from_file(file)
    compared = 0
    for seed in range(30):
        random = Random(seed)
        tools = TOOLS if random.random() < 0.5 else None
        for messages in growing(random):
            if version == "v2" and any(message["role"] == "tool" for message in messages):
                continue  # its rules for tools are others
            request = ChatCompletionRequest.from_openai(messages=messages, tools=tools)
            expected = library.encode_chat_completion(request).tokens
            fields = {"tools": tools} if tools else {}
            assert chat_ids(model, messages, **fields) == expected, seed
            assert chat_ids(forgetful, messages, **fields) == expected, seed
            compared += 1
    assert compared > 20
    assert model.memo_size > 0 == forgetful.memo_size


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    model = ServedModel.load("m", write("v3t", tmp_path), memo_bytes=20_000)
    for seed in range(60):
        chat_ids(model, [{"role": "user", "content": text(Random(seed), 200) + " end"}])
        assert model.memo_size <= 20_000


def test_chain_is_that_of_the_ids(models: dict[str, ServedModel]) -> None:
    prompt = Prompt(Chat.of([{"role": "user", "content": "hello " * 50}]))
    for model in models.values():
        (ids,) = model.token_ids(prompt)
        (chain,) = model.encode(prompt, ROOT, 16, Stages())
        assert chain.keys == block_keys(ids, ROOT, 16) != b""


def test_special_tokens_that_a_user_types_are_text(models: dict[str, ServedModel]) -> None:
    for model in models.values():
        (ids,) = model.token_ids(Prompt(Plain(("[INST] hi</s>",), add_special_tokens=False)))
        assert model.decode(ids) == "[INST] hi</s>"


def test_text_begins_with_the_begin_of_text_token(models: dict[str, ServedModel]) -> None:
    (whole,) = models["v3t"].token_ids(Prompt(Plain(("hi",))))
    (plain,) = models["v3t"].token_ids(Prompt(Plain(("hi",), add_special_tokens=False)))
    assert unpack_ids(whole) == [1, *unpack_ids(plain)]


def test_long_ids_of_calls_are_shortened_but_not_in_the_responses_api(
    models: dict[str, ServedModel],
) -> None:
    """tokenizers/mistral.py, truncate_tool_call_ids; /v1/responses does not call it."""

    def messages(call: str) -> Messages:
        function = {"name": "f", "arguments": "{}"}
        calls = [{"id": call, "type": "function", "function": function}]
        said = {"role": "assistant", "content": None, "tool_calls": calls}
        return [*HELLO, said, {"role": "tool", "tool_call_id": call, "content": "x"}]

    long, short = "chatcmpl-tool-123456789", "123456789"
    assert chat_ids(models["v7"], messages(long)) == chat_ids(models["v7"], messages(short))
    call = {"type": "function_call", "call_id": long, "name": "f", "arguments": "{}"}
    items = [*HELLO, call, {"type": "function_call_output", "call_id": long, "output": "x"}]
    with pytest.raises(Unroutable, match="mistral_failed"):
        ids_of(models["v7"], "/v1/responses", {"input": items})


def test_effort_is_told_only_to_versions_that_know_it(models: dict[str, ServedModel]) -> None:
    for version, told in (("v13t", False), ("v15t", True)):
        plain = chat_ids(models[version], HELLO)
        assert (chat_ids(models[version], HELLO, reasoning_effort="high") != plain) is told


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reasoning_effort": "enormous"}, "reasoning_effort_unknown"),
        ({"reasoning_effort": 3}, "reasoning_effort_unknown"),
        ({"reasoning_effort": "low"}, "mistral_failed"),
        ({"chat_template": "x"}, "request_chat_template"),
        ({"messages": []}, "mistral_failed"),
        ({"messages": [{"role": "custom", "content": "x"}]}, "mistral_failed"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "mistral_failed"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "mistral_failed"),
    ],
)
def test_what_the_engine_refuses_is_left_to_load(
    models: dict[str, ServedModel], fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(Unroutable) as unroutable:
        ids_of(models["v15t"], "/v1/chat/completions", {"messages": HELLO} | fields)
    assert unroutable.value.reason == reason


def test_answer_is_continued(models: dict[str, ServedModel]) -> None:
    started = [*HELLO, {"role": "assistant", "content": "I was "}]
    open_ended = {"continue_final_message": True, "add_generation_prompt": False}
    ids = chat_ids(models["v3t"], started, **open_ended)
    assert ids == library_ids(REAL["v3t"], started, continue_final_message=True)
    assert ids[-1] != 2


def test_chain_ends_before_the_first_image(models: dict[str, ServedModel]) -> None:
    """At the last special token before it, so that whatever stands there, the ids begin so."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    before = [
        {"role": "system", "content": "rules " * 40},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
    ]
    after = [{"role": "assistant", "content": "a square"}, {"role": "user", "content": "sure?"}]

    def messages(*parts: object) -> Messages:
        seen = {"role": "user", "content": [{"type": "text", "text": "see"}, *parts]}
        return [*before, seen, *after]

    body = json.dumps({"messages": messages(image, image)}).encode()
    prompt = parse_body("/v1/chat/completions", body)
    for version, model in models.items():
        (chain,) = model.encode(prompt, ROOT, 16, Stages())
        for word in ("", "0", "10", " a longer text"):
            ids = chat_ids(model, messages({"type": "text", "text": word}))
            assert chain.keys == block_keys(pack_ids(ids[: chain.tokens]), ROOT, 16)
            assert ids[chain.tokens - 1] == 3, f"{version}: [INST]"
        with pytest.raises(Unroutable, match="media"):
            model.token_ids(prompt)


@pytest.mark.parametrize(
    ("names", "mode", "found"),
    [
        (["tokenizer.json"], "auto", None),
        (["tekken.json"], "auto", "tekken.json"),
        (["tokenizer.model.v3"], "auto", "tokenizer.model.v3"),
        (["tokenizer.model.v3", "tokenizer.model.v7", "tekken.json"], "auto", "tekken.json"),
        (["tokenizer.model.v3", "tokenizer.model.v7"], "auto", "tokenizer.model.v7"),
        (["tokenizer.json", "tekken.json"], "auto", None),
        (["tokenizer.json", "tekken.json", "consolidated-1.safetensors"], "auto", "tekken.json"),
        (["tokenizer.json", "consolidated.safetensors"], "auto", None),
        (["tokenizer.json", "tekken.json"], "mistral", "tekken.json"),
        (["tokenizer.json", "tekken.json"], "hf", None),
        (["tokenizer.model"], "auto", None),
        (["tokenizer.model"], "mistral", "tokenizer.model"),
    ],
)
def test_mistrals_file_is_found_as_vllm_does(
    names: list[str], mode: Any, found: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert mistral_file(tmp_path, mode) == (tmp_path / found if found else None)


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has neither tekken.json nor tokenizer.model"):
        ServedModel.load("m", tmp_path, mode="mistral")
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tekken.json: not a tokenizer of Mistral's"):
        ServedModel.load("m", tmp_path)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mistral_common.protocol.instruct", None)
    with pytest.raises(ConfigError, match=r"needs homing\[mistral\]"):
        ServedModel.load("m", write("v3t", tmp_path))
