"""Whole prompts with a real tokenizer, against the tokenizers library and a real vLLM."""

import json
import lzma
from collections import Counter
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import extproc.demo
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
from extproc.stages import Stages
from extproc.terms import BlockKey
from tests.prompt.families import TEMPLATES, load, templates, tokenizer
from tests.tokenizers import tokenizer_dir

DEMO_TOKENIZER = Path(extproc.demo.__file__).parent / "tokenizer"
RECORDED = Path(__file__).parent / "data" / "vllm-0.32.0.jsonl.xz"
ROOT = root_seed(secret=b"secret", model="qwen3", block_size=16)
LEFT = {
    "chat_template_kwargs_reserved": 6,
    "truncated_prompt": 2,
    "token_ids_invalid": 2,
    "prompt_forwarded": 1,
}
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", " ", "\n", "user", "é", "日本", "</think>"]),
        max_size=12,
    ).map("".join),
)


@pytest.fixture(scope="module")
def reference() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tokenizer_dir("qwen3") / "tokenizer.json"))


def test_ids_are_those_of_a_real_vllm(qwen3: ServedModel) -> None:
    """Each of the recorded requests whose prompt vLLM 0.32.0 rendered or tokenized itself."""
    wrong, right = [], 0
    with lzma.open(RECORDED, "rt", encoding="utf-8") as lines:
        for line in lines:
            recorded = json.loads(line)
            prompt = parse_body(recorded["path"], json.dumps(recorded["request"]).encode())
            (ids,) = qwen3.token_ids(prompt)
            if unpack_ids(ids) == recorded["prompt_ids"]:
                right += 1
            else:
                wrong.append(recorded["n"])
    assert (wrong, right) == ([], 365)


@pytest.mark.parametrize(
    ("shapes", "template", "equal", "left_to_load"),
    [
        ("shapes", None, 348, LEFT),
        ("parts", "dump_parts", 304, LEFT),
        ("texts", "dump_texts", 300, LEFT),
        ("tools-parts", "dump_tools_parts", 268, {}),
        ("tools-texts", "dump_tools_texts", 244, {}),
    ],
)
def test_ids_are_those_of_a_real_vllm_for_odd_shapes(
    shapes: str, template: str | None, equal: int, left_to_load: dict[str, int]
) -> None:
    """Fuzzed chats, Anthropic messages and Responses items, and one of each odd field.

    With Qwen3's template, and with some that write out all that vLLM gives to a template. `tools`:
    messages that change the tools, answers that name some, and answers to be continued.
    """
    model = load("qwen3", TEMPLATES / f"{template}.jinja" if template else None)
    wrong, left, right = [], Counter[str](), 0
    with lzma.open(RECORDED.with_name(f"vllm-0.32.0-{shapes}.jsonl.xz"), "rt") as lines:
        for number, line in enumerate(lines, 1):
            recorded = json.loads(line)
            try:
                prompt = parse_body(recorded["path"], json.dumps(recorded["request"]).encode())
                ids = [unpack_ids(one) for one in model.token_ids(prompt)]
            except Unroutable as unroutable:
                left[unroutable.reason] += 1
                continue
            if ids == recorded["prompt_ids"]:
                right += 1
            else:
                wrong.append(number)
    assert (wrong, right) == ([], equal)
    assert left == left_to_load


@given(st.lists(TEXTS, min_size=1, max_size=4))
@settings(deadline=None)
def test_texts_are_tokenized_as_by_the_reference(
    qwen3: ServedModel, reference: tokenizers.Tokenizer, texts: list[str]
) -> None:
    ids = qwen3.token_ids(Prompt(Plain(tuple(texts))))
    assert [unpack_ids(item) for item in ids] == [reference.encode(text).ids for text in texts]


@given(st.lists(TEXTS | st.lists(st.integers(0, 999)).map(pack_ids), min_size=1, max_size=4))
@settings(deadline=None)
def test_each_prompt_of_a_list_starts_at_the_root(
    qwen3: ServedModel, prompts: list[str | bytes]
) -> None:
    content = Plain(tuple(prompts))  # type: ignore[arg-type]
    chains = qwen3.encode(Prompt(content), ROOT, 16, Stages())
    ids = qwen3.token_ids(Prompt(content))
    assert [chain.keys for chain in chains] == [block_keys(item, ROOT, 16) for item in ids]
    assert [chain.tokens for chain in chains] == [len(unpack_ids(item)) for item in ids]


def test_stages_are_recorded_in_order(qwen3: ServedModel) -> None:
    """The look for a known turn is a part of rendering; the whole rendering is another."""
    turn = [{"role": "user", "content": "stages " * 50}, {"role": "assistant", "content": "yes"}]
    recorded = []
    for count in (1, 3):
        stages = Stages()
        chat = Chat.of((turn * 2)[:count], options={"add_generation_prompt": True})
        (chain,) = qwen3.encode(Prompt(chat), ROOT, 16, stages)
        recorded.append([name for name, _, _ in stages.spans])
        assert chain.blocks == chain.tokens // 16 > 0
    assert recorded[0] == ["render", "render", "tokenize", "hash", "remember"]
    assert recorded[1] == ["render", "tokenize", "hash", "remember"]


def test_later_turn_begins_with_the_keys_of_the_one_before(qwen3: ServedModel) -> None:
    turn = [{"role": "user", "content": "tell me a story " * 40}]
    answer = [
        {"role": "assistant", "content": "once upon a time"},
        {"role": "user", "content": "go"},
    ]
    (first,) = qwen3.encode(Prompt(Chat.of(turn)), ROOT, 16, Stages())
    (second,) = qwen3.encode(Prompt(Chat.of(turn + answer)), ROOT, 16, Stages())
    assert second.keys.startswith(first.keys)
    assert second.blocks > first.blocks


def test_another_root_shares_no_key(qwen3: ServedModel) -> None:
    prompt = Prompt(Plain(("hello " * 100,)))
    (mine,) = qwen3.encode(prompt, ROOT, 16, Stages())
    (theirs,) = qwen3.encode(prompt, BlockKey(ROOT + 1), 16, Stages())
    assert mine.blocks == theirs.blocks > 0
    assert mine.keys != theirs.keys


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "no role"}, "message_without_role"),
        ({"role": "user", "content": 3}, "content_invalid"),
        ({"role": "user", "content": [3]}, "content_part_invalid"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "content_part_unknown"),
        ({"role": "assistant", "tool_calls": ["f"]}, "tool_call_invalid"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "tool_call_invalid"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": r'{"a": "\ud800"}'}}]},
            "lone_surrogate",
        ),
    ],
)
def test_message_whose_tokens_are_unknown_is_unroutable(
    qwen3: ServedModel, message: dict[str, object], reason: str
) -> None:
    with pytest.raises(Unroutable) as unroutable:
        qwen3.encode(Prompt(Chat.of([message])), ROOT, 16, Stages())
    assert unroutable.value.reason == reason


@pytest.mark.parametrize("tools", [b'{"f": 1}', b'["f"]', b'[{"type": "function"}]', b"3"])
def test_tools_that_are_none_are_unroutable(qwen3: ServedModel, tools: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}], "tools": %s}' % tools
    with pytest.raises(Unroutable, match="tools_invalid"):
        qwen3.encode(parse_body("/v1/chat/completions", body), ROOT, 16, Stages())


OWN = b'{"messages": [{"role": "user", "content": "hi"}], "chat_template": %s}'


def own_template(model: ServedModel, template: str) -> str:
    prompt = parse_body("/v1/chat/completions", OWN % json.dumps(template).encode())
    (chain,) = model.encode(prompt, ROOT, 4, Stages())
    (ids,) = model.token_ids(prompt)
    assert chain.keys == block_keys(ids, ROOT, 4)
    return model.decode(ids)


def test_template_of_a_request_is_not_rendered(qwen3: ServedModel) -> None:
    with pytest.raises(Unroutable, match="request_chat_template"):
        own_template(qwen3, "{{ messages[0].content }}")


def test_template_of_a_request_is_rendered_where_it_is_trusted() -> None:
    named = {name: templates("qwen3").sibling(f"{name} one") for name in ("default", "other")}
    model = ServedModel("m", tokenizer("qwen3"), named, trust_request_template=True)
    assert own_template(model, "{{ messages[0].content }} there, see") == "hi there, see"
    assert own_template(model, "{{ messages[0].content }} here, see") == "hi here, see"
    assert own_template(model, "other") == "other one"
    for broken in ("{% if %}", "{{ raise_exception('no') }}"):
        with pytest.raises(Unroutable, match="template_failed"):
            own_template(model, broken)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}


@pytest.mark.parametrize(
    "parts", [[IMAGE], [{"type": "text", "text": "see"}, IMAGE], [SOUND], [VIDEO, SOUND]]
)
def test_chain_ends_before_the_first_image(qwen3: ServedModel, parts: list[object]) -> None:
    before = [
        {"role": "system", "content": "rules " * 100},
        {"role": "user", "content": "hello"},
    ]
    closed = Chat.of(before, options={"add_generation_prompt": False})
    after = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]
    (expected,) = qwen3.encode(Prompt(closed), ROOT, 16, Stages())
    for messages in (before + after[:1], before + after):
        (chain,) = qwen3.encode(Prompt(Chat.of(messages)), ROOT, 16, Stages())
        assert chain == expected
        with pytest.raises(Unroutable, match="media"):
            qwen3.token_ids(Prompt(Chat.of(messages)))


def test_plain_text_goes_to_ids_and_back(qwen3: ServedModel) -> None:
    assert qwen3.decode(qwen3.tokenize("Grüße, 世界!")) == "Grüße, 世界!"


def model_dir(base: Path, **files: str) -> Path:
    """A directory with the demo's small tokenizer and the given files (`__` stands for a dot)."""
    (base / "tokenizer.json").symlink_to(DEMO_TOKENIZER / "tokenizer.json")
    for name, text in files.items():
        (base / name.replace("__", ".")).write_text(text)
    return base


def rendered(directory: Path, tools: list[object] | None = None, **load: Path) -> str:
    model = ServedModel.load("m", directory, **load)
    return model.render(Chat.of([{"role": "user", "content": "hi"}], tools))


TOOL = {"type": "function", "function": {"name": "f"}}


def test_template_file_is_preferred_to_the_configuration(tmp_path: Path) -> None:
    config = json.dumps({"chat_template": "config"})
    directory = model_dir(tmp_path, tokenizer_config__json=config, chat_template__jinja="file")
    assert rendered(directory) == "file"
    (tmp_path / "given.jinja").write_text("given")
    assert rendered(directory, chat_template=tmp_path / "given.jinja") == "given"
    (tmp_path / "chat_template.jinja").unlink()
    assert rendered(directory) == "config"


def test_named_template_for_tools_is_used_when_there_are_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    directory = model_dir(tmp_path, tokenizer_config__json=json.dumps({"chat_template": named}))
    assert rendered(directory) == "plain"
    assert rendered(directory, [TOOL]) == "tools"


def test_text_of_the_body_is_in_no_error(tmp_path: Path) -> None:
    source = "{{ raise_exception(messages[0].content) }}"
    with pytest.raises(Unroutable) as unroutable:
        rendered(model_dir(tmp_path, chat_template__jinja=source))
    assert str(unroutable.value) == "template_failed: TemplateError"


def test_template_gets_the_named_tokens_that_are_set(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": None}
    source = "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}"
    directory = model_dir(
        tmp_path, tokenizer_config__json=json.dumps(config), chat_template__jinja=source
    )
    assert rendered(directory) == "<s></s>False"


def test_model_without_template_serves_completions_only(tmp_path: Path) -> None:
    model = ServedModel.load("m", model_dir(tmp_path))
    assert model.token_ids(Prompt(Plain(("hi",))))
    with pytest.raises(Unroutable, match="no_chat_template"):
        model.render(Chat.of([]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": "{"}, "tokenizer.json: not a tokenizer.json: "),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json: not JSON: "),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json: not a JSON object"),
        ({"chat_template__jinja": "a\n{% if %}"}, "chat_template.jinja:2: not a Jinja template: "),
        (
            {"tokenizer_config__json": '{"chat_template": [{"name": "x"}]}'},
            "tokenizer_config.json: chat_template[0]: has no name and template",
        ),
        (
            {"tokenizer_config__json": '{"chat_template": 3}'},
            "tokenizer_config.json: chat_template: neither a string nor a list",
        ),
        ({}, "tokenizer.json: cannot be read: No such file or directory"),
    ],
)
def test_broken_model_file_is_named_with_what_is_wrong(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    with pytest.raises(ConfigError) as error:
        ServedModel.load("m", tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: not a directory"):
        ServedModel.load("m", tmp_path / "nowhere")
