import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from extproc.demo import train_tokenizer
from extproc.demo.answers import Vocabulary
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.errors import ConfigError
from extproc.prompt import ServedModel, parse_body, unpack_ids
from extproc.terms import TokenIds

MODEL = ServedModel.load("demo-model", DEMO_TOKENIZER)
TOKENIZER = Tokenizer.from_file(str(DEMO_TOKENIZER / "tokenizer.json"))

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}


def render(messages: list[dict[str, object]], **fields: object) -> str:
    body = json.dumps({"messages": messages, **fields}).encode()
    (ids,) = MODEL.token_ids(parse_body("/v1/chat/completions", body))
    return str(TOKENIZER.decode(unpack_ids(ids), skip_special_tokens=False))


def test_training_again_gives_the_committed_files_byte_for_byte() -> None:
    assert train_tokenizer.train() == (DEMO_TOKENIZER / "tokenizer.json").read_text("utf-8")
    assert train_tokenizer.configuration() == (DEMO_TOKENIZER / "tokenizer_config.json").read_text(
        "utf-8"
    )


def test_the_tokenizer_is_small_and_has_chatmls_special_tokens() -> None:
    assert (DEMO_TOKENIZER / "tokenizer.json").stat().st_size < 300_000
    assert TOKENIZER.get_vocab_size() == 4_000
    for number, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        assert unpack_ids(MODEL.tokenize(token)) == [number]


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    ids = unpack_ids(MODEL.tokenize(text))
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_a_chat_is_rendered_as_chatml() -> None:
    assert render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": [{"type": "text", "text": "Bye"}]},
        ]
    ) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("system", [True, False])
def test_tools_stand_in_the_first_system_turn(system: bool) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Rain?"}]
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    text = render(messages, tools=[WEATHER])
    assert text.startswith("<|im_start|>system\n" + ("Be brief.\n\n" if system else "You may call"))
    assert '{"type": "function", "function": {"name": "weather"' in text
    assert text.count("<|im_start|>system") == text.count("Be brief.") + (not system) == 1


def test_a_tool_loop_keeps_its_reasoning_until_the_user_speaks_again() -> None:
    loop: list[dict[str, object]] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "reasoning": "ask it", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "dry"},
    ]
    called = '<tool_call>\n{"name": "weather", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
    text = render(loop, tools=[WEATHER])
    assert f"assistant\n<think>\nask it\n</think>\n\n{called}<|im_start|>tool\ndry" in text
    later: list[dict[str, object]] = [
        *loop,
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    ]
    assert f"assistant\n{called}" in render(later, tools=[WEATHER])
    assert "ask it" not in render(later, tools=[WEATHER])


def test_thinking_can_be_turned_off() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hi"}]
    text = render(messages, chat_template_kwargs={"enable_thinking": False})
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "<think>" not in render(messages, chat_template_kwargs={"enable_thinking": True})


@given(seed=st.binary(max_size=8), limit=st.integers(1, 90), after_blank=st.booleans())
def test_an_answer_is_tokenized_to_the_tokens_it_was_made_of(
    seed: bytes, limit: int, after_blank: bool
) -> None:
    answer = Vocabulary(MODEL).answer(
        seed=seed, usual_tokens=40, limit=limit, ignore_eos=False, after_blank=after_blank
    )
    before = "<|im_start|>assistant\n" if after_blank else "Assistant:"
    text = before + "".join(answer.pieces) + "<|im_end|>\n"
    ids = unpack_ids(MODEL.tokenize(text))
    start = len(unpack_ids(MODEL.tokenize(before)))
    assert ids[start : start + len(answer.pieces)] == unpack_ids(answer.ids)
    assert 1 <= answer.tokens <= limit


def test_a_tokenizer_without_words_is_refused() -> None:
    class Letters(ServedModel):
        def tokenize(self, text: str) -> TokenIds:
            return TokenIds(text.encode("utf-32-le"))

    with pytest.raises(ConfigError, match="letters has fewer than 16"):
        Vocabulary(Letters("letters", MODEL._tokenizer, {}))
