"""gpt-oss: ids of chats as vLLM 0.32.0 renders them with harmony."""

import json
import lzma
import sys
from datetime import datetime
from pathlib import Path

import pytest

import extproc.demo
from extproc.errors import ConfigError, Unroutable
from extproc.prompt import Chat, Prompt, ServedModel, block_keys, parse_body, root_seed, unpack_ids
from extproc.prompt.harmony import Harmony
from extproc.stages import Stages

DEMO_TOKENIZER = Path(extproc.demo.__file__).parent / "tokenizer"
RECORDED = Path(__file__).parent / "data" / "vllm-0.32.0-harmony.jsonl.xz"
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


def test_ids_are_those_of_vllm(gpt_oss: ServedModel) -> None:
    wrong, right = [], 0
    with lzma.open(RECORDED, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            recorded = json.loads(line)
            prompt = parse_body(recorded["path"], json.dumps(recorded["request"]).encode())
            if [unpack_ids(ids) for ids in gpt_oss.token_ids(prompt)] == recorded["prompt_ids"]:
                right += 1
            else:
                wrong.append(number)
    assert (wrong, right) == ([], 280)


def test_chain_is_that_of_the_ids(gpt_oss: ServedModel) -> None:
    prompt = Prompt(Chat.of(HELLO * 20))
    (ids,) = gpt_oss.token_ids(prompt)
    (chain,) = gpt_oss.encode(prompt, ROOT, 16, Stages())
    assert chain.keys == block_keys(ids, ROOT, 16) != b""


def test_date_is_the_engines() -> None:
    dates = [Harmony(lambda now=now: now) for now in (day(), day().replace(day=25))]  # type: ignore[misc]
    first, second = (harmony.encode(Chat.of(HELLO), merges_system=True) for harmony in dates)
    assert first != second


def test_responses_items_are_left_to_load(gpt_oss: ServedModel) -> None:
    with pytest.raises(Unroutable, match="harmony_responses"):
        gpt_oss.token_ids(parse_body("/v1/responses", b'{"input": "hello"}'))


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (Chat.of(HELLO, options={"reasoning_effort": "none"}), "reasoning_effort_unknown"),
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
    with pytest.raises(ConfigError, match=r"gpt-oss needs homing\[harmony\]"):
        ServedModel.load("gpt-oss", tmp_path)
