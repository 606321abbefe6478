"""gpt-oss: ids of chats as vLLM 0.32.0 renders them with harmony."""

import json
import lzma
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

import extproc.demo
from extproc.errors import ConfigError, Unroutable
from extproc.prompt import Chat, Prompt, ServedModel, block_keys, parse_body, root_seed, unpack_ids
from extproc.prompt.harmony import Harmony
from extproc.stages import Stages

DEMO_TOKENIZER = Path(extproc.demo.__file__).parent / "tokenizer"
RECORDED = Path(__file__).parent / "data"
ROOT = root_seed(secret=b"secret", model="gpt-oss", block_size=16)
HELLO = [{"role": "user", "content": "hello"}]


def day() -> datetime:
    return datetime(2026, 11, 24)


@pytest.fixture
def gpt_oss(tmp_path: Path) -> ServedModel:
    """A model whose configuration says gpt_oss; harmony has a vocabulary of its own."""
    (tmp_path / "tokenizer.json").symlink_to(DEMO_TOKENIZER / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    return ServedModel.load("gpt-oss", tmp_path, now=day)


@pytest.mark.parametrize(
    ("recording", "equal", "left"),
    [
        ("harmony", 280, {}),
        (
            "harmony-responses",
            369,
            # Built-in tools, whose text is the engine's tool server's, and what names other inputs.
            {"tools_invalid": 6, "responses_field_unknown": 3, "prompt_forwarded": 1},
        ),
    ],
)
def test_ids_are_those_of_vllm(
    gpt_oss: ServedModel, recording: str, equal: int, left: dict[str, int]
) -> None:
    """Chats and Anthropic messages, and the items of the Responses API."""
    wrong, right, unroutable = [], 0, Counter[str]()
    with lzma.open(RECORDED / f"vllm-0.32.0-{recording}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            recorded = json.loads(line)
            try:
                prompt = parse_body(recorded["path"], json.dumps(recorded["request"]).encode())
                ids = [unpack_ids(one) for one in gpt_oss.token_ids(prompt)]
            except Unroutable as error:
                unroutable[error.reason] += 1
                continue
            if ids == recorded["prompt_ids"]:
                right += 1
            else:
                wrong.append(number)
    assert (wrong, right) == ([], equal)
    assert unroutable == left


def test_chain_is_that_of_the_ids(gpt_oss: ServedModel) -> None:
    prompt = Prompt(Chat.of(HELLO * 20))
    (ids,) = gpt_oss.token_ids(prompt)
    (chain,) = gpt_oss.encode(prompt, ROOT, 16, Stages())
    assert chain.keys == block_keys(ids, ROOT, 16) != b""


def test_date_is_the_engines() -> None:
    dates = [Harmony(lambda now=now: now, 0) for now in (day(), day().replace(day=25))]  # type: ignore[misc]
    first, second = (harmony.encode_chat(Chat.of(HELLO), merges_system=True) for harmony in dates)
    assert first != second


U = {"role": "user", "content": "hello"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
ANSWER = {"type": "function_call_output", "call_id": "c", "output": "x"}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([U, ANSWER], "tool_call_invalid"),
        ([U, CALL, ANSWER | {"output": [{"type": "input_text", "text": "x"}]}], "harmony_failed"),
        ([{"content": "x"}], "message_without_role"),
        ([{"role": "user"}], "harmony_failed"),
        ([U, {"type": "item_reference", "id": "r"}], "input_item_unknown"),
        ([U, {"type": "custom_tool_call", "call_id": "c", "input": "x"}], "input_item_unknown"),
    ],
)
def test_items_that_vllm_refuses_are_left_to_load(
    gpt_oss: ServedModel, items: list[object], reason: str
) -> None:
    body = json.dumps({"input": items}).encode()
    with pytest.raises(Unroutable) as unroutable:
        gpt_oss.token_ids(parse_body("/v1/responses", body))
    assert unroutable.value.reason == reason


def test_ids_of_known_messages_are_not_made_again(gpt_oss: ServedModel) -> None:
    """And are the same: with tools and without, and where nothing is kept."""
    forgetful = Harmony(day, 0)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    messages = []
    for word in ("a", "b", "c"):
        messages += [{"role": "user", "content": word}, {"role": "assistant", "content": word}]
        for chat in (Chat.of(messages), Chat.of(messages, tools)):
            (ids,) = gpt_oss.token_ids(Prompt(chat))
            assert ids == forgetful.encode_chat(chat, merges_system=True)
    rendered: list[object] = []
    harmony = gpt_oss._chats
    assert isinstance(harmony, Harmony)
    render = harmony._encoding.render
    harmony._encoding.render = lambda *args: rendered.append(args) or render(*args)
    gpt_oss.token_ids(Prompt(Chat.of([*messages, {"role": "user", "content": "new"}])))
    assert len(rendered) == 1
    assert gpt_oss.memo_size > 0 == forgetful.memo_size


def test_what_is_kept_is_bounded() -> None:
    harmony = Harmony(day, 5_000)
    for number in range(60):
        harmony.encode_chat(Chat.of([{"role": "user", "content": f"{number} " * 20}]), True)
        assert harmony.memo_size <= 5_000


def test_effort_in_the_template_arguments_is_not_harmonys(gpt_oss: ServedModel) -> None:
    """vLLM reads the request's own field; a template would see the argument."""

    def ids(**fields: object) -> object:
        body = json.dumps({"messages": HELLO} | fields).encode()
        return gpt_oss.token_ids(parse_body("/v1/chat/completions", body))

    assert ids(chat_template_kwargs={"reasoning_effort": "high"}) == ids()
    assert ids(reasoning_effort="high") != ids()


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (Chat(Chat.of(HELLO).messages, effort="none"), "reasoning_effort_unknown"),
        (Chat.of([{"role": "custom", "content": "x"}]), "harmony_failed"),
        (Chat.of([{"role": "user", "content": 3}]), "harmony_failed"),
        (Chat.of([{"content": "x"}]), "message_without_role"),
    ],
)
def test_what_harmony_refuses_is_left_to_load(
    gpt_oss: ServedModel, chat: Chat, reason: str
) -> None:
    with pytest.raises(Unroutable) as unroutable:
        gpt_oss.token_ids(Prompt(chat))
    assert unroutable.value.reason == reason


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai_harmony", None)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    with pytest.raises(ConfigError, match=r"needs homing\[harmony\]"):
        ServedModel.load("gpt-oss", tmp_path)
