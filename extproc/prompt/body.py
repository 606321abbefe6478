"""Request bodies → `Prompt`: which paths are read, what is refused and what is left to the engine.

Refused (400) is only a body on an LLM path that is not a JSON object, or whose `model`,
`messages`, `prompt` or `input` has a type that no engine accepts. What is JSON is judged as the
most lenient engine does: Python's `json` reads NaN, a lone surrogate and UTF-16, so such a body is
routed by load and the engine answers it.
"""

import json
from typing import Any, NoReturn, TypeGuard

import msgspec

from extproc.errors import BadRequest, Unroutable
from extproc.prompt.ids import pack_ids
from extproc.prompt.types import Chat, Json, Plain, Prompt
from extproc.terms import TokenIds

_CHAT = "chat"
_COMPLETIONS = "completions"
_OTHER = "other"

_PATHS = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETIONS,
    "/v1/responses": _OTHER,
    "/v1/messages": _OTHER,
    "/v1/messages/count_tokens": _OTHER,
    "/v1/embeddings": _OTHER,
    "/v1/score": _OTHER,
    "/v1/rerank": _OTHER,
    "/inference/v1/generate": _OTHER,
}


def _kind(path: str) -> str | None:
    return _PATHS.get(path.partition("?")[0])


def is_llm_path(path: str) -> bool:
    """Whether a POST to `path` carries a prompt; the query string is ignored."""
    return _kind(path) is not None


def parse_body(path: str, body: bytes) -> Prompt:
    """Read the body of a POST to an LLM path.

    Raises BadRequest by the rule above, and Unroutable where the tokens cannot be known.
    """
    kind = _kind(path)
    if kind is None:
        raise Unroutable("unknown_path")
    fields = _decode(body)
    _check_types(fields)
    if kind == _CHAT:
        content: Chat | Plain = _chat(fields)
    elif kind == _COMPLETIONS:
        content = _completion(fields)
    else:
        raise Unroutable("unsupported_path")
    return Prompt(
        content,
        model=fields.get("model") or "",
        adapter=_text(fields, "lora_path"),
        salt=_text(fields, "cache_salt"),
        stream=fields.get("stream") is True,
        max_tokens=_limit(fields),
        user=_text(fields, "user"),
    )


def _decode(body: bytes) -> dict[str, Json]:
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise Unroutable("json_too_deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = _decode_leniently(body)
        if isinstance(fields, dict):
            raise Unroutable("json_dialect") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    return fields


def _decode_leniently(body: bytes) -> Json:
    try:
        return json.loads(body)
    except RecursionError:
        raise Unroutable("json_too_deep") from None
    except ValueError:
        raise BadRequest("the body is not valid JSON") from None


def _check_types(fields: dict[str, Json]) -> None:
    model = fields.get("model")
    if not (model is None or isinstance(model, str)):
        raise BadRequest("must be a string", "model")
    if "messages" in fields:
        messages = fields["messages"]
        if not isinstance(messages, list):
            raise BadRequest("must be a list of objects", "messages")
        for i, message in enumerate(messages):
            if not isinstance(message, dict):
                raise BadRequest("must be an object", f"messages[{i}]")
    if "input" in fields and not isinstance(fields["input"], str | list | dict):
        raise BadRequest("must be a string or a list", "input")


def _chat(fields: dict[str, Json]) -> Chat:
    messages = fields.get("messages")
    if messages is None:
        raise Unroutable("no_messages")
    if fields.get("chat_template") is not None:
        raise Unroutable("request_chat_template")
    tools = fields.get("tools")
    if tools is not None and not (_is_objects(tools) and tools):
        raise Unroutable("tools_invalid")
    options = fields.get("chat_template_kwargs")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise Unroutable("chat_template_kwargs_invalid")
    effort = fields.get("reasoning_effort")
    defaults: dict[str, Json] = {
        "add_generation_prompt": fields.get("add_generation_prompt", True),
        "continue_final_message": fields.get("continue_final_message", False),
        "documents": fields.get("documents"),
        "reasoning_effort": effort,
    }
    if effort is not None and "enable_thinking" not in options:
        defaults["enable_thinking"] = effort != "none"
    options = options | {k: v for k, v in defaults.items() if v is not None}
    return Chat(
        messages, tools, options, add_special_tokens=fields.get("add_special_tokens") is True
    )


def _completion(fields: dict[str, Json]) -> Plain:
    prompt = fields.get("prompt")
    if prompt is None:
        raise Unroutable("no_prompt")
    return Plain(_prompts(prompt), add_special_tokens=fields.get("add_special_tokens") is not False)


def _prompts(prompt: Json) -> tuple[str | TokenIds, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        _refuse_prompt()
    if not prompt:
        raise Unroutable("empty_prompt")
    if isinstance(prompt[0], str):
        if not all(isinstance(text, str) for text in prompt):
            _refuse_prompt()
        return tuple(prompt)
    if isinstance(prompt[0], list):
        if not all(isinstance(ids, list) for ids in prompt):
            _refuse_prompt()
        return tuple(_ids(ids) for ids in prompt)
    return (_ids(prompt),)


def _ids(ids: list[Any]) -> TokenIds:
    if not all(isinstance(token, int | float) for token in ids):
        _refuse_prompt()
    return pack_ids(ids)


def _refuse_prompt() -> NoReturn:
    raise BadRequest("must be a string, a list of strings, token ids or lists of them", "prompt")


def _is_objects(value: Json) -> TypeGuard[list[dict[str, Json]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _text(fields: dict[str, Json], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _limit(fields: dict[str, Json]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if type(value) is int:
            return value
    return None
