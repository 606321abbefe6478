"""Whatever a body holds: a chain, a 400 by the rule, or a reason; never another error."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.errors import BadRequest, Unroutable
from extproc.prompt import Chain, ServedModel, parse_body, root_seed
from extproc.stages import Stages

ROOT = root_seed(secret=b"secret", model="m", block_size=16)
PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/inference/v1/generate",
    "/v1/embeddings",
]
# ruff: noqa: SIM905 - a list of quoted words is unreadable
KEYS = st.sampled_from(
    (
        "role content type text tool_calls function name arguments id reasoning thinking input "
        "output summary call_id input_schema status parameters source tool_use_id effort "
        "enable_thinking documents tools"
    ).split()
)
WORDS = st.just("") | st.sampled_from(
    (
        "user assistant system tool developer text image image_url function message tool_use "
        "tool_result thinking reasoning function_call function_call_output input_text "
        "output_text disabled incomplete auto {} [1]"
    ).split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**40) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": WORDS}, optional={"content": VALUES, "tool_calls": VALUES})
    | st.dictionaries(KEYS, VALUES, max_size=5),
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "messages": MESSAGES | VALUES,
        "input": MESSAGES | VALUES,
        "prompt": VALUES,
        "token_ids": VALUES,
        "model": VALUES,
        "tools": st.lists(st.fixed_dictionaries({"function": VALUES, "name": WORDS})) | VALUES,
        "system": VALUES,
        "instructions": VALUES,
        "thinking": VALUES,
        "output_config": VALUES,
        "reasoning": VALUES,
        "reasoning_effort": VALUES,
        "chat_template_kwargs": VALUES,
        "documents": VALUES,
        "add_generation_prompt": VALUES,
        "continue_final_message": VALUES,
        "add_special_tokens": VALUES,
        "cache_salt": VALUES,
        "max_tokens": VALUES,
        "stream": VALUES,
        "user": VALUES,
        "kv_transfer_params": VALUES,
        "previous_response_id": VALUES,
    },
)


def outcome(model: ServedModel, path: str, body: bytes) -> tuple[Chain, ...] | str:
    try:
        return model.encode(parse_body(path, body), ROOT, 16, Stages())
    except BadRequest as refusal:
        return f"400 {refusal.path}"
    except Unroutable as unroutable:
        return unroutable.reason


@given(st.sampled_from(PATHS), BODIES)
@settings(deadline=None, max_examples=400)
def test_any_values_give_a_chain_or_a_reason(
    qwen3: ServedModel, path: str, body: dict[str, Any]
) -> None:
    first = outcome(qwen3, path, json.dumps(body).encode())
    assert outcome(qwen3, path, json.dumps(body).encode()) == first
    if isinstance(first, str):
        assert first == first.strip() != ""


@given(st.sampled_from(PATHS), st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_give_a_chain_or_a_reason(qwen3: ServedModel, path: str, body: bytes) -> None:
    assert outcome(qwen3, path, body) in {"400 ", "no_messages", "no_prompt", "no_input"}


FIELDS = ["messages", "tools", "chat_template_kwargs", "documents", "system", "thinking", "prompt"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", [*FIELDS, "input", "token_ids", "unknown", "user", "stream"])
@pytest.mark.parametrize("depth", [200, 480, 900, 100_000])
def test_deep_values_give_a_chain_or_a_reason(
    qwen3: ServedModel, path: str, field: str, depth: int
) -> None:
    hello = b'"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"'
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"type":"text","text":', b"}]")):
        deep = opened * depth + b"1" + closed * depth
        before = b"".join(
            part for part in (hello + b", ",) if field not in ("messages", "prompt", "input")
        )
        assert outcome(qwen3, path, b'{%s"%s": %s}' % (before, field.encode(), deep))


@pytest.mark.parametrize("place", ["content", "arguments", "parameters", "text"])
def test_deep_values_inside_messages_give_a_chain_or_a_reason(
    qwen3: ServedModel, place: str
) -> None:
    for depth in (100, 300, 490, 900, 5_000):
        deep = "[" * depth + "]" * depth
        arguments = json.dumps(f'{{"a": {deep}}}')
        body = {
            "content": '{"messages": [{"role": "user", "content": DEEP}]}',
            "arguments": (
                '{"messages": [{"role": "assistant", "tool_calls": '
                '[{"id": "c", "function": {"name": "f", "arguments": ARGUMENTS}}]}]}'
            ),
            "parameters": (
                '{"messages": [], "tools": '
                '[{"function": {"name": "f", "parameters": {"a": DEEP}}}]}'
            ),
            "text": '{"messages": [{"role": "user", "content": [{"type": "text", "x": DEEP}]}]}',
        }[place]
        body = body.replace("DEEP", deep).replace("ARGUMENTS", arguments)
        assert outcome(qwen3, "/v1/chat/completions", body.encode())


def test_huge_text_is_encoded_and_not_kept(qwen3: ServedModel) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a b c " * 3_500_000}]}).encode()
    (chain,) = outcome(qwen3, "/v1/chat/completions", body)
    assert isinstance(chain, Chain)
    assert chain.tokens > 10_000_000
    assert qwen3.memo_size < 256 << 20


def test_hundred_thousand_messages_are_encoded(qwen3: ServedModel) -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 50_000
    body = json.dumps({"messages": messages}).encode()
    (chain,) = outcome(qwen3, "/v1/chat/completions", body)
    assert isinstance(chain, Chain)
    assert chain.tokens > 500_000
    messages.append({"role": "user", "content": "y"})
    (longer,) = outcome(qwen3, "/v1/chat/completions", json.dumps({"messages": messages}).encode())
    assert isinstance(longer, Chain)
    assert longer.keys.startswith(chain.keys[:-8])
