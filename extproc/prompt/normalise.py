"""What vLLM does to chat messages and tools before its template sees them.

Rules of vLLM 0.32.0; the file that each comes from is named where it is applied.
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
}
_SKIPPED_IF_NULL = frozenset({"text", "refusal"})
_BILLING_LINE = "x-anthropic-billing-header"


def normalise_messages(messages: Iterable[dict[str, Json]]) -> list[dict[str, Json]]:
    """The conversation as the template gets it (vllm/renderers/chat_utils.py).

    New objects; the arguments are not changed. Raises Unroutable for what vLLM refuses or for
    content whose tokens only its multi-modal processor knows.
    """
    return [_message(message) for message in messages]


def _message(message: dict[str, Json]) -> dict[str, Json]:
    role = message.get("role")
    if not isinstance(role, str):
        raise Unroutable("message_without_role")
    result: dict[str, Json] = {"role": role, "content": _content(role, message.get("content"))}
    if role == "assistant":
        calls = message.get("tool_calls")
        if calls:
            result["tool_calls"] = [_tool_call(call) for call in calls]
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
        if isinstance(message.get(extra), str):
            result[extra] = message[extra]
    if role == "developer":
        result["tools"] = message.get("tools")
    return result


def _content(role: str, content: Json) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        parts: Sequence[Json] = (content,)
    elif isinstance(content, list):
        parts = content
    else:
        raise Unroutable("content_invalid")
    texts = [text for part in parts if (text := _part(part))]
    if role == "system":
        texts = [kept for text in texts if (kept := _without_billing_line(text))]
    return "\n".join(texts)


def _part(part: Json) -> str:
    """The text of a part; an empty one is left out (`_parse_chat_message_content_parts`)."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Unroutable("content_part_invalid")
    kind = part.get("type")
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise Unroutable("content_part_unknown")
    text = part.get(name)
    if text is None and kind in _SKIPPED_IF_NULL:
        return ""
    if not isinstance(text, str):
        raise Unroutable("content_part_invalid")
    return text


def _without_billing_line(text: str) -> str:
    """Claude Code's attribution changes with every request; vLLM drops the line."""
    return text.partition("\n")[2] if text.startswith(_BILLING_LINE) else text


def _tool_call(call: Json) -> dict[str, Json]:
    if not isinstance(call, dict):
        raise Unroutable("tool_call_invalid")
    function = call.get("function")
    if call.get("type", "function") != "function" or not isinstance(function, dict):
        raise Unroutable("tool_call_invalid")
    return call | {"function": function | {"arguments": _arguments(function.get("arguments"))}}


def _arguments(arguments: Json) -> dict[str, Json]:
    """Arguments as an object; what is none becomes {} (`_postprocess_messages`)."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
        except RecursionError:
            raise Unroutable("tool_call_invalid") from None
    return arguments if isinstance(arguments, dict) else {}


def normalise_tools(tools: Sequence[Json] | None) -> list[dict[str, Any]] | None:
    """Tools as vLLM dumps them from its own types (openai/chat_completion/protocol.py).

    `description` and `parameters` are null where absent, `strict` is there only if set, and
    unknown fields are gone.
    """
    if not tools:
        return None
    return [_tool(tool) for tool in tools]


def _tool(tool: Json) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise Unroutable("tools_invalid")
    if not isinstance(function.get("name"), str):
        raise Unroutable("tools_invalid")
    result = {
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    if function.get("strict") is not None:
        result["strict"] = function["strict"]
    return {"type": "function", "function": result}
