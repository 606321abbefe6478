"""The 400 rule of the endpoint picker protocol, and what is left to the engine."""

import json

import pytest

from extproc.errors import BadRequest, Unroutable
from extproc.prompt import Chat, Plain, Prompt, is_llm_path, pack_ids, parse_body

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: object) -> Prompt:
    return parse_body(CHAT, json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def completion(prompt: object, **fields: object) -> Prompt:
    return parse_body(COMPLETIONS, json.dumps({"model": "m", "prompt": prompt} | fields).encode())


def nested(depth: int) -> bytes:
    return b'{"model": "m", "messages": [' + b"[" * depth + b"]" * depth + b"]}"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/embeddings", CHAT + "?api-version=2"])
def test_llm_path_is_known_whatever_its_query(path: str) -> None:
    assert is_llm_path(path)


@pytest.mark.parametrize("path", ["/v1/models", "/", "", "/v1/chat/completions/x", "/health?x=1"])
def test_other_path_is_not_an_llm_path(path: str) -> None:
    assert not is_llm_path(path)


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (CHAT, b"", ""),
        (CHAT, b"{", ""),
        (CHAT, b"[]", ""),
        (CHAT, b'"text"', ""),
        (CHAT, b"null", ""),
        (CHAT, b'{"model": "m", "messages": []} {}', ""),
        (CHAT, b'{"model": "m\xff", "messages": []}', ""),
        (CHAT, b'{"messages": [{"role": "user", "content": "\xc3("}]}', ""),
        (CHAT, b'{"model": 1, "messages": []}', "model"),
        (CHAT, b'{"model": ["m"], "messages": []}', "model"),
        (CHAT, b'{"model": "m", "messages": "hello"}', "messages"),
        (CHAT, b'{"model": "m", "messages": {"role": "user"}}', "messages"),
        (CHAT, b'{"model": "m", "messages": null}', "messages"),
        (CHAT, b'{"model": "m", "messages": [{"role": "user"}, "hello"]}', "messages[1]"),
        (COMPLETIONS, b'{"model": "m", "prompt": 3}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": true}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": {"text": "a"}}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": [{"text": "a"}]}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": ["a", null]}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": [1, {}]}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": [[1], [[2]]]}', "prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": [[1], 2]}', "prompt"),
        ("/v1/embeddings", b'{"model": "m", "input": 3}', "input"),
        ("/v1/responses", b'{"model": "m", "input": false}', "input"),
        ("/v1/responses", b'{"model": "m", "input": ["text"]}', "input[0]"),
        ("/v1/messages", b'{"model": "m", "messages": [[]]}', "messages[0]"),
        ("/inference/v1/generate", b"[]", ""),
    ],
)
def test_body_that_no_engine_accepts_is_400(path: str, body: bytes, where: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_body(path, body)
    assert refusal.value.path == where


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/models", b"{", "unknown_path"),
        (CHAT, b'{"model": "m", "messages": [{"role": "user", "content": NaN}]}', "json_dialect"),
        (CHAT, b'{"model": "m", "messages": [], "temperature": Infinity}', "json_dialect"),
        (CHAT, rb'{"messages": [{"role": "user", "content": "\ud800"}]}', "json_dialect"),
        (CHAT, '{"model": "m", "messages": []}'.encode("utf-16"), "json_dialect"),
        (CHAT, b'\xef\xbb\xbf{"model": "m", "messages": []}', "json_dialect"),
        (CHAT, nested(100_000), "json_too_deep"),
        (CHAT, b'{"model": "m"}', "no_messages"),
        (CHAT, b'{"messages": [], "chat_template": 3}', "request_chat_template"),
        (CHAT, b'{"messages": [], "tools": []}', "tools_invalid"),
        (
            CHAT,
            b'{"messages": [], "chat_template_kwargs": {"tools": 1}}',
            "chat_template_kwargs_reserved",
        ),
        (CHAT, b'{"messages": [], "chat_template_kwargs": 1}', "chat_template_kwargs_invalid"),
        (COMPLETIONS, b'{"model": "m"}', "no_prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": null}', "no_prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": "a", "suffix": "b"}', "suffix"),
        (COMPLETIONS, b'{"model": "m", "prompt": "a", "suffix": ""}', "suffix"),
        (COMPLETIONS, b'{"model": "m", "prompt": []}', "empty_prompt"),
        (COMPLETIONS, b'{"model": "m", "prompt": [-1]}', "token_ids_invalid"),
        (COMPLETIONS, b'{"model": "m", "prompt": [1, 4294967296]}', "token_ids_invalid"),
        (COMPLETIONS, b'{"model": "m", "prompt": [1.5]}', "token_ids_invalid"),
        (COMPLETIONS, b'{"model": "m", "prompt": ["1", 2]}', "token_ids_invalid"),
        (COMPLETIONS, b'{"model": "m", "prompt": [1, "2"]}', "token_ids_invalid"),
        (CHAT, b'{"messages": [], "truncate_prompt_tokens": 4}', "truncated_prompt"),
        (
            CHAT,
            b'{"messages": [], "kv_transfer_params": {"prompt_token_ids": [1]}}',
            "prompt_forwarded",
        ),
        ("/v1/messages", b'{"model": "m"}', "no_messages"),
        ("/v1/responses", b'{"model": "m"}', "no_input"),
        ("/v1/responses", b'{"input": "a", "previous_response_id": "r"}', "previous_response"),
        ("/v1/responses", b'{"input": "a", "prompt": {"id": "p"}}', "responses_field_unknown"),
        ("/inference/v1/generate", b'{"token_ids": "a"}', "no_token_ids"),
        ("/score", b'{"model": "m", "text_1": "a"}', "not_generative"),
        ("/v1/embeddings", b'{"model": "m", "input": "text"}', "not_generative"),
    ],
)
def test_all_else_is_left_to_the_engine(path: str, body: bytes, reason: str) -> None:
    with pytest.raises(Unroutable) as unroutable:
        parse_body(path, body)
    assert unroutable.value.reason == reason


def test_chat_keeps_messages_as_sent() -> None:
    content = chat().content
    assert isinstance(content, Chat)
    assert content.messages.decoded() == HELLO


def test_model_may_be_missing() -> None:
    assert parse_body(CHAT, b'{"messages": []}').model == ""


def test_empty_cache_salt_is_none() -> None:
    assert chat(cache_salt="").salt == chat().salt == chat(cache_salt=None).salt == ""
    assert chat(cache_salt="s").salt == "s"


def test_stream_limit_user_and_adapter_are_read() -> None:
    prompt = chat(stream=True, max_tokens=7, user="u", lora_path="a")
    assert (prompt.stream, prompt.max_tokens, prompt.user, prompt.adapter) == (True, 7, "u", "a")
    assert chat(max_completion_tokens=3, max_tokens=7).max_tokens == 3
    assert (chat().stream, chat().max_tokens, chat().user, chat().adapter) == (False, None, "", "")


def test_generate_takes_the_clients_ids() -> None:
    prompt = parse_body("/inference/v1/generate", b'{"model": "m", "token_ids": [5, 6]}')
    assert prompt.content == Plain((pack_ids([5, 6]),))


def test_prompt_list_is_a_chain_each() -> None:
    content = completion(["a", "b"]).content
    assert content == Plain(("a", "b"))
    assert completion("a").content == Plain(("a",))


def test_token_ids_are_taken_as_they_are() -> None:
    assert completion([1, 2]).content == Plain((pack_ids([1, 2]),))
    assert completion([[1], [2, 3]]).content == Plain((pack_ids([1]), pack_ids([2, 3])))


def test_special_tokens_are_added_to_completions_and_responses() -> None:
    """vLLM 0.32.0, openai/responses/protocol.py, build_tok_params, does not turn them off."""
    assert parse_body("/v1/responses", b'{"input": "a"}').content.add_special_tokens
    assert not parse_body("/v1/messages", b'{"messages": []}').content.add_special_tokens
    assert completion("a").content.add_special_tokens
    assert not completion("a", add_special_tokens=False).content.add_special_tokens
    assert not chat().content.add_special_tokens
    assert chat(add_special_tokens=True).content.add_special_tokens


def test_reasoning_effort_turns_thinking_on_and_off() -> None:
    """vLLM 0.32.0, openai/chat_completion/protocol.py, build_chat_params."""

    def thinking(**fields: object) -> object:
        content = chat(**fields).content
        assert isinstance(content, Chat)
        return content.options.get("enable_thinking")

    assert thinking() is None
    assert thinking(reasoning_effort="high") is True
    assert thinking(reasoning_effort="none") is False
    assert thinking(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) is True
