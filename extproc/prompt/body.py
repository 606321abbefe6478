"""Request bodies → `Prompt`: which paths are read, what is refused and what is left to the engine.

Refused (400) is only a body on an LLM path that is not a JSON object, or whose `model`,
`messages`, `prompt` or `input` has a type that no engine accepts. What is JSON is judged as the
most lenient engine does: Python's `json` reads NaN, a lone surrogate and UTF-16, so such a body is
routed by load and the engine answers it.
"""

import re
from collections.abc import Callable, Mapping
from math import inf
from typing import NoReturn, TypeAlias

from extproc.errors import BadRequest, PreviousResponse, Unroutable
from extproc.prompt.dialects import goes_on
from extproc.prompt.ids import pack_ids
from extproc.prompt.rawarray import RawArray
from extproc.prompt.reader import Body, BodyReader, read_fields
from extproc.prompt.types import Chat, Dialect, Json, Plain, Prompt
from extproc.terms import TokenIds

_MESSAGES = BodyReader("messages")
_INPUT = BodyReader("input")

_NO_TOOLS = re.compile(rb"\[\s*\]")

_UNSET = (None, "auto")

_RESERVED_OPTIONS = frozenset(
    {
        "chat_template",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Template arguments that change what `apply_chat_template` itself does, or that vLLM refuses."""


def is_llm_path(path: str) -> bool:
    """Whether a POST to `path` carries a prompt; the query string is ignored."""
    return _api(path) is not None


def parse_body(path: str, body: bytes, most_new: float = inf) -> Prompt:
    """Read the body of a POST to an LLM path.

    most_new: bytes that may be read besides known messages.

    Raises BadRequest by the rule above, Unroutable where the tokens cannot be known, and TooNew.
    The next turn of a known conversation costs only its new messages.
    """
    api = _api(path)
    if api is None:
        raise Unroutable("unknown_path")
    read, content_of = api
    fields = read(body, most_new)
    _check_types(fields)
    content = content_of(fields)
    if fields.get("truncate_prompt_tokens") is not None:
        raise Unroutable("truncated_prompt")
    forwarded = fields.get("kv_transfer_params")
    if isinstance(forwarded, dict) and "prompt_token_ids" in forwarded:
        raise Unroutable("prompt_forwarded")  # by a prefill stage: the ids, not the body, count
    return Prompt(
        content,
        model=fields.get("model") or "",
        adapter=_text(fields, "lora_path"),
        salt=_text(fields, "cache_salt"),
        stream=fields.get("stream") is True,
        max_tokens=_limit(fields),
        user=_text(fields, "user"),
        metadata=_metadata(fields),
    )


def _check_types(fields: Body) -> None:
    model = fields.get("model")
    if not (model is None or isinstance(model, str)):
        raise BadRequest("must be a string", "model")
    if "messages" in fields and not isinstance(fields.get("messages"), list):
        raise BadRequest("must be a list of objects", "messages")
    if not isinstance(fields.get("input"), str | list | dict | None):
        raise BadRequest("must be a string or a list", "input")


def _chat(fields: Body) -> Chat:
    """vLLM 0.32.0, openai/chat_completion/protocol.py."""
    if fields.items is None:
        raise Unroutable("no_messages")
    template = fields.get("chat_template")
    if not isinstance(template, str | None):
        raise Unroutable("request_chat_template")
    effort = fields.get("reasoning_effort")
    if _NO_TOOLS.fullmatch(fields.raw("tools")):
        raise Unroutable("tools_invalid")  # an empty list is refused
    return Chat(
        fields.items,
        tools=_tools(fields),
        options=_options(
            fields,
            effort,
            add_generation_prompt=fields.get("add_generation_prompt") is not False,
            continue_final_message=fields.get("continue_final_message") or None,
            documents=fields.get("documents"),
        ),
        effort=effort,
        template=template or None,
        settings=_settings(
            fields,
            "tools",
            "chat_template_kwargs",
            "reasoning_effort",
            "add_generation_prompt",
            "continue_final_message",
            "documents",
        ),
        add_special_tokens=fields.get("add_special_tokens") is True,
    )


def _messages(fields: Body) -> Chat:
    """vLLM 0.32.0, anthropic/serving.py, to_chat_completion_request."""
    if fields.items is None:
        raise Unroutable("no_messages")
    thinking = fields.get("thinking")
    config = fields.get("output_config")
    effort = config.get("effort") if isinstance(config, dict) else None
    if isinstance(thinking, dict) and thinking.get("type") == "disabled":
        effort = "none"
    return Chat(
        fields.items,
        Dialect.ANTHROPIC,
        system=fields.get("system"),
        tools=_tools(fields, empty=b"[]"),
        options=_options(fields, effort, add_generation_prompt=True),
        effort=effort,
        settings=_settings(
            fields, "system", "tools", "chat_template_kwargs", "thinking", "output_config"
        ),
    )


def _responses(fields: Body) -> Chat | Plain:
    """vLLM 0.32.0, openai/responses/protocol.py, build_chat_params."""
    if (previous := fields.get("previous_response_id")) is not None:
        raise PreviousResponse(previous if isinstance(previous, str) else "")
    if fields.get("previous_input_messages") is not None or fields.get("prompt") is not None:
        raise Unroutable("responses_field_unknown")
    items = fields.items
    if items is None:
        text = fields.get("input")
        if not isinstance(text, str):
            raise Unroutable("no_input")
        items = RawArray.of([{"role": "user", "content": text}])
    continued = goes_on(items.decoded([len(items) - 1])[0]) if len(items) else False
    reasoning = fields.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return Chat(
        items,
        Dialect.RESPONSES,
        system=fields.get("instructions"),
        tools=_tools(fields),
        options=_options(
            fields,
            effort,
            add_generation_prompt=not continued,
            continue_final_message=continued or None,
        ),
        effort=effort,
        settings=_settings(fields, "instructions", "tools", "chat_template_kwargs", "reasoning"),
        add_special_tokens=True,
    )


def _completion(fields: Body) -> Plain:
    """vLLM 0.32.0, openai/completion/protocol.py."""
    if fields.get("suffix") is not None:
        # Refused, or put around the prompt by a renderer of the model's own.
        raise Unroutable("suffix")
    prompt = fields.get("prompt")
    if prompt is None:
        raise Unroutable("no_prompt")
    return Plain(_prompts(prompt), add_special_tokens=fields.get("add_special_tokens") is not False)


def _generate(fields: Body) -> Plain:
    """vLLM 0.32.0, scale_out/token_in_token_out: the client has tokenized."""
    ids = fields.get("token_ids")
    if not isinstance(ids, list) or fields.get("features") is not None:
        raise Unroutable("no_token_ids")
    return Plain((pack_ids(ids),))


def _not_generative(fields: Body) -> NoReturn:
    raise Unroutable("not_generative")


_Api: TypeAlias = tuple[Callable[[bytes, float], Body], Callable[[Body], Chat | Plain]]

_APIS: dict[str, _Api] = {
    "/v1/chat/completions": (_MESSAGES.read, _chat),
    "/v1/completions": (read_fields, _completion),
    "/v1/responses": (_INPUT.read, _responses),
    "/v1/messages": (_MESSAGES.read, _messages),
    "/v1/messages/count_tokens": (_MESSAGES.read, _messages),
    "/inference/v1/generate": (read_fields, _generate),
    "/v1/embeddings": (read_fields, _not_generative),
    "/v1/score": (read_fields, _not_generative),
    "/v1/rerank": (read_fields, _not_generative),
    "/v2/rerank": (read_fields, _not_generative),
    "/score": (read_fields, _not_generative),
    "/rerank": (read_fields, _not_generative),
}


def _api(path: str) -> _Api | None:
    return _APIS.get(path.partition("?")[0])


def _options(fields: Body, effort: Json, **own: Json) -> dict[str, Json]:
    """The template's arguments: `chat_template_kwargs`, and over them what the API itself sets.

    A reasoning effort turns thinking on or off for templates that know of it. Null and "auto" are
    as good as absent (vLLM 0.32.0, renderers/params.py, merge_kwargs).
    """
    given = fields.get("chat_template_kwargs")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Unroutable("chat_template_kwargs_invalid")
    if not _RESERVED_OPTIONS.isdisjoint(given):
        raise Unroutable("chat_template_kwargs_reserved")
    own["reasoning_effort"] = effort
    if effort is not None and "enable_thinking" not in given:
        own["enable_thinking"] = effort != "none"
    options = given | {name: value for name, value in own.items() if value is not None}
    return {name: value for name, value in options.items() if value not in _UNSET}


def _tools(fields: Body, empty: bytes = b"") -> bytes:
    """empty: what no tools in a list are to a template: a list, or b"" for nothing."""
    raw = fields.raw("tools")
    if _NO_TOOLS.fullmatch(raw):
        return empty
    return b"" if raw == b"null" else raw


def _settings(fields: Body, *names: str) -> bytes:
    return b"\0".join([fields.raw(name) for name in names])


def _prompts(prompt: Json) -> tuple[str | TokenIds, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        _refuse_prompt()
    if not prompt:
        raise Unroutable("empty_prompt")
    kind = type(prompt[0])
    if kind in (str, list) and all(type(item) is kind for item in prompt):
        return tuple(prompt) if kind is str else tuple(map(_ids, prompt))
    return (_ids(prompt),)


def _ids(ids: list[Json]) -> TokenIds:
    try:
        return pack_ids(ids)
    except Unroutable:
        # vLLM takes 1.0 and "1" for ids too; an object, a list or null is none to anybody.
        if not all(isinstance(token, int | float | str) for token in ids):
            _refuse_prompt()
        raise


def _refuse_prompt() -> NoReturn:
    raise BadRequest("must be a string, a list of strings, token ids or lists of them", "prompt")


def _text(fields: Body, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _metadata(fields: Body) -> Mapping[str, Json]:
    value = fields.get("metadata")
    return value if isinstance(value, dict) else {}


def _limit(fields: Body) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = fields.get(name)
        if type(value) is int:
            return value
    return None
