"""What vLLM does to chat messages and tools before its template sees them.

Rules of vLLM 0.32.0; the function that each comes from is named where it is applied, in
vllm/renderers/chat_utils.py unless said otherwise. Requests that vLLM refuses need no rule: no
tokens are computed for them.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from extproc.errors import Unroutable
from extproc.prompt.types import Json

_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "name",
}
"""The field that holds a part's text, by the part's type."""

_REFERENCE = "tool_reference"
"""A part that names a tool; a template may write the tool out there."""

MEDIA_PARTS = frozenset(
    {
        "audio_embeds",
        "audio_url",
        "image_embeds",
        "image_url",
        "input_audio",
        "input_image",
        "video_embeds",
        "video_url",
    }
)
_PART_FIELDS = frozenset({"type", "text", "refusal", "thinking", "closed", "annotations", "uuid"})
_BILLING_LINE = "x-anthropic-billing-header"


class KeptJson(dict[str, Json]):
    """An object that never changes and keeps its JSON texts, by how they were asked for.

    Tools are the same in each turn of a conversation, and most of what its template writes.
    """

    __slots__ = ("_texts",)

    _texts: dict[str, str]

    def text(self, **form: Any) -> str:
        """What `json.dumps` gives with these arguments."""
        try:
            texts = self._texts
        except AttributeError:
            texts = self._texts = {}
        key = repr(form)
        text = texts.get(key)
        if text is None:
            text = texts[key] = json.dumps(self, **form)
        return text


class OrderedCall(dict[str, Json]):
    """A tool call whose function keeps the order of its fields."""


def normalise_messages(
    messages: Iterable[dict[str, Json]], parts: bool = False, media: str | None = None
) -> list[dict[str, Json]]:
    """The conversation as the template gets it.

    parts: whether the template loops over the parts of a content, so that a content becomes a list
        of parts instead of one text (vLLM's content format "openai" instead of "string").

    media: what to write where an image, a sound or a video is: its tokens are known only to the
        engine's multi-modal processor. None: Unroutable("media").

    The arguments are not changed, and may be part of the result. Raises Unroutable for what vLLM
    refuses.
    """
    return [_message(message, parts, media) for message in messages]


def _message(message: dict[str, Json], parts: bool, media: str | None) -> dict[str, Json]:
    role = message.get("role")
    content = message.get("content")
    if not isinstance(role, str):
        raise Unroutable("message_without_role")
    if (
        len(message) == 2
        and type(content) is str
        and not parts
        and role != "developer"
        and next(iter(message)) == "role"
        and not content.startswith(_BILLING_LINE)
    ):
        return message  # what the template gets is what was sent: true of most
    result: dict[str, Json] = {"role": role}
    if parts:
        result["content"] = _as_parts(role, content, media)
    elif type(content) is str and not content.startswith(_BILLING_LINE):
        result["content"] = content
    else:
        result["content"] = _as_text(role, content, media)
    if role == "assistant":
        if message.get("tool_calls"):
            result["tool_calls"] = _tool_calls(message["tool_calls"])
        # openai/chat_completion/protocol.py: `reasoning_content` is the old name of `reasoning`.
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            result["reasoning"] = reasoning
            result["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    for extra in ("name", "task"):
        if extra in message and isinstance(message[extra], str):
            result[extra] = message[extra]
    if role == "developer":
        result["tools"] = message.get("tools")
    return result


def _items(role: str, content: Json) -> Sequence[Json]:
    """The parts of a content; a text is one, null none (`_parse_chat_message_content`)."""
    if content is None:
        return ()
    items: Sequence[Json] = (content,) if isinstance(content, str) else content
    if not isinstance(items, list | tuple):
        raise Unroutable("content_invalid")
    if role == "system":
        items = [kept for item in items if (kept := _without_billing_line(item)) is not None]
    return items


def _without_billing_line(part: Json) -> Json:
    """A part without Claude Code's attribution, which changes with every request; None if empty.

    (`_strip_claude_code_billing_header`)
    """
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
    if not (isinstance(text, str) and text.startswith(_BILLING_LINE)):
        return part
    rest = text.partition("\n")[2]
    if not rest:
        return None
    return rest if isinstance(part, str) else part | {"text": rest}


def _as_text(role: str, content: Json, media: str | None) -> str:
    """Texts joined by line ends, empty ones left out; media come before them.

    (`_parse_chat_message_content_parts`, `_get_full_multimodal_text_prompt`)
    """
    texts = [_text(item, media) for item in _items(role, content)]
    if media is not None and media in texts:
        texts = [media, *[text for text in texts if text != media]]
    return "\n".join(filter(None, texts))


def _text(part: Json, media: str | None) -> str:
    """The text of a part; "" where it has none."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Unroutable("content_part_invalid")
    kind = part.get("type")
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None or "uuid" in part:
        if kind not in MEDIA_PARTS:
            raise Unroutable("content_part_unknown")
        if media is None:
            raise Unroutable("media")
        return media
    text = part.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Unroutable("content_part_invalid")
    return text


def _as_parts(role: str, content: Json, media: str | None) -> Json:
    """Parts with the fields that vLLM does not know kept (`_collect_extra_fields`)."""
    parts = []
    for item in _items(role, content):
        text = _text(item, media)
        fields = item if isinstance(item, dict) else {}
        if not text and fields and fields.get("text", fields.get("refusal")) is None:
            continue
        if fields.get("type") == _REFERENCE:
            parts.append({"type": _REFERENCE, "name": text})
            continue
        extra = {name: fields[name] for name in fields if name not in _PART_FIELDS}
        parts.append({"type": "text", "text": text} | extra)
    # Answers of tools that are texts are one text in either format (`_parse_chat_message_content`).
    if role == "tool" and all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _tool_calls(calls: Json) -> list[dict[str, Json]]:
    if not isinstance(calls, list):
        raise Unroutable("tool_call_invalid")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Json) -> dict[str, Json]:
    """A call with its fields in the order of openai's ChatCompletionMessageToolCallParam.

    The Responses API is not read by that type: there the name comes before the arguments.
    """
    if not isinstance(call, dict):
        raise Unroutable("tool_call_invalid")
    function = call.get("function")
    if call.get("type", "function") != "function" or not isinstance(function, dict):
        raise Unroutable("tool_call_invalid")
    if isinstance(call, OrderedCall):
        named = function | {"arguments": parse_arguments(function["arguments"])}
        return {"id": call["id"], "function": named, "type": "function"}
    named = {"arguments": parse_arguments(function.get("arguments")), "name": function.get("name")}
    result = {"id": call.get("id"), "function": named, "type": "function"}
    if len(function) > len(named):
        named |= {name: value for name, value in function.items() if name not in named}
    if len(call) > len(result):
        result |= {name: value for name, value in call.items() if name not in result}
    return result


def parse_arguments(arguments: Json) -> dict[str, Json]:
    """Arguments as an object; what is none becomes {} (`_postprocess_messages`)."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
        except RecursionError:
            raise Unroutable("tool_call_invalid") from None
    return arguments if isinstance(arguments, dict) else {}


def developer_as_system(messages: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """For a template that does not know the role `developer`: system messages, merged into one.

    (renderers/hf.py, `_convert_developer_to_system` and `_consolidate_system_messages`)
    """
    if all(message["role"] != "developer" for message in messages):
        return messages
    converted = []
    for message in messages:
        if message["role"] == "developer":
            message = message | {"role": "system"}
            del message["tools"]
        converted.append(message)
    system = [message for message in converted if message["role"] == "system"]
    if len(system) == 1 and converted[0]["role"] == "system":
        return converted
    texts = [text for message in system if (text := _joined(message["content"]))]
    others = [message for message in converted if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]


def _joined(content: Json) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def normalise_tools(tools: Sequence[Json] | None) -> list[dict[str, Any]] | None:
    """Tools as vLLM dumps them from its own types.

    `description` and `parameters` are null where absent, `strict` and `defer_loading` are there
    only if set, and unknown fields are gone (openai/chat_completion/protocol.py and
    generate/base/protocol.py).
    """
    return None if tools is None else [_tool(tool) for tool in tools]


def _tool(tool: Json) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise Unroutable("tools_invalid")
    description, parameters = function.get("description"), function.get("parameters")
    if not (
        isinstance(function.get("name"), str)
        and isinstance(description, str | None)
        and isinstance(parameters, dict | None)
    ):
        raise Unroutable("tools_invalid")
    result = KeptJson(name=function["name"], description=description, parameters=parameters)
    deferred = tool.get("defer_loading")
    own = function.get("defer_loading")
    if function.get("strict") is not None:
        result["strict"] = function["strict"]
    if own is not None or deferred is not None:
        result["defer_loading"] = deferred if own is None else own
    dumped = KeptJson(type="function", function=result)
    if deferred is not None:
        dumped["defer_loading"] = deferred
    return dumped
