"""Anthropic messages and Responses items → OpenAI chat messages, as vLLM 0.32.0 converts them."""

import json
from collections.abc import Iterable, Sequence

import msgspec

from extproc.errors import Unroutable
from extproc.prompt.normalise import OrderedCall
from extproc.prompt.types import Chat, Dialect, Json

_BILLING = "x-anthropic-billing-header"
_IMAGE: Json = {"type": "image_url"}
"""Which image it is is never looked at."""


def leading_messages(chat: Chat) -> list[Json]:
    """The messages that a chat begins with before its own: a system text beside them."""
    if not chat.system:
        return []
    if chat.dialect is Dialect.ANTHROPIC:
        system = chat.system
        text = system if isinstance(system, str) else "".join(_anthropic_texts(system))
        return [{"role": "system", "content": text}] if text else []
    return [{"role": "system", "content": chat.system}]


def to_chat(dialect: Dialect, items: Iterable[Json], merge_system: bool = False) -> list[Json]:
    """OpenAI chat messages of a chat's items.

    merge_system: Anthropic's inline system messages belong to the leading one, so they are not
        among these (see `inline_system_texts`).
    """
    if dialect is Dialect.OPENAI:
        return list(items)
    if dialect is Dialect.ANTHROPIC:
        messages: list[Json] = []
        for item in items:
            messages += _from_anthropic(item, merge_system)
        return messages
    return _from_responses(items)


def is_local(dialect: Dialect) -> bool:
    """Whether each item becomes messages on its own, whatever is around it."""
    return dialect is not Dialect.RESPONSES


def inline_system_texts(items: Iterable[Json]) -> list[str]:
    """The texts of Anthropic system messages inside the conversation."""
    return [
        text
        for item in items
        if item.get("role") == "system" and (text := "".join(_anthropic_texts(item.get("content"))))
    ]


def tools_of(chat: Chat) -> Sequence[Json] | None:
    """Tools in OpenAI's form; Unroutable where they have none."""
    if not chat.tools:
        return None
    tools = msgspec.json.decode(chat.tools)
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Unroutable("tools_invalid")
    if chat.dialect is Dialect.ANTHROPIC:
        return [_anthropic_tool(tool) for tool in tools]
    if chat.dialect is Dialect.RESPONSES:
        return [_responses_tool(tool) for tool in tools]
    return tools


def _anthropic_texts(content: Json) -> list[str]:
    """Texts of a system prompt without Claude Code's attribution (`_extract_system_text`)."""
    if isinstance(content, str):
        return [] if content.startswith(_BILLING) else [content]
    if not isinstance(content, list):
        raise Unroutable("content_invalid")
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(block, dict) and block.get("type") in ("tool_addition", "tool_removal"):
            raise Unroutable("tool_change")
        if isinstance(text, str) and block.get("type") == "text" and not text.startswith(_BILLING):
            texts.append(text)
    return texts


def _from_anthropic(item: Json, merge_system: bool) -> list[Json]:
    """`_convert_messages` and what it calls (anthropic/serving.py)."""
    role, content = item.get("role"), item.get("content")
    if role == "system":
        text = "".join(_anthropic_texts(content))
        return [{"role": "system", "content": text}] if text and not merge_system else []
    if role not in ("user", "assistant"):
        raise Unroutable("message_without_role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise Unroutable("content_invalid")
    message: dict[str, Json] = {"role": role}
    parts: list[Json] = []
    calls: list[Json] = []
    reasoning: list[str] = []
    before: list[Json] = []
    for block in content:
        if not isinstance(block, dict):
            raise Unroutable("content_part_invalid")
        match block.get("type"):
            case "text":
                if block.get("text"):
                    parts.append({"type": "text", "text": block["text"]})
            case "thinking":
                if block.get("thinking") is not None:
                    reasoning.append(_string(block["thinking"]))
            case "tool_use":
                calls.append(_tool_use(block))
            case "tool_result" if role == "user":
                before += _tool_result(block)
            case "image":
                parts.append(_IMAGE)
            case "redacted_thinking" | "tool_reference":
                pass
            case _:
                raise Unroutable("content_part_unknown")
    if reasoning:
        message["reasoning"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    if len(parts) == 1 and parts[0]["type"] == "text":
        message["content"] = parts[0]["text"]
    elif parts:
        message["content"] = parts
    if role == "user" and "content" not in message:
        return before
    return [*before, message]


def _tool_use(block: dict[str, Json]) -> Json:
    if not block.get("id"):
        raise Unroutable("tool_call_invalid")  # vLLM makes an id from its clock
    arguments = json.dumps(block.get("input") or {})
    function = {"name": block.get("name") or "", "arguments": arguments}
    return {"id": block["id"], "type": "function", "function": function}


def _tool_result(block: dict[str, Json]) -> list[Json]:
    """A tool's answer; its images become a user message after it (`_convert_user_tool_result`)."""
    content = block.get("content")
    text = content if isinstance(content, str) else ""
    images = []
    if isinstance(content, list):
        texts = []
        for item in content:
            match item.get("type") if isinstance(item, dict) else None:
                case "text":
                    texts.append(_string(item.get("text", "")))
                case "image":
                    images.append(_IMAGE)
                case _:
                    raise Unroutable("content_part_unknown")
        text = "\n".join(texts)
    answer = {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": text}
    return [answer, {"role": "user", "content": images}] if images else [answer]


def _anthropic_tool(tool: dict[str, Json]) -> Json:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise Unroutable("tools_invalid")
    if "type" not in schema:
        schema = schema | {"type": "object"}
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": schema,
        "strict": tool.get("strict"),
        "defer_loading": tool.get("defer_loading"),
    }
    return {"type": "function", "function": function}


def _responses_tool(tool: dict[str, Json]) -> Json:
    if tool.get("type") != "function":
        raise Unroutable("tools_invalid")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _from_responses(items: Iterable[Json]) -> list[Json]:
    """`construct_chat_messages_with_tool_call` (openai/responses/utils.py).

    Reasoning, text and calls of one answer are items of their own and become one message.
    """
    messages: list[Json] = []
    for item in items:
        field, value = _answer_part(item)
        if field is None:
            messages.append(value)
            continue
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant" and field == "tool_calls":
            last[field] = (last.get(field) or []) + value
        elif last.get("role") == "assistant" and last.get(field) is None:
            last[field] = value
        else:
            messages.append({"role": "assistant", field: value})
    return messages


def _answer_part(item: Json) -> tuple[str | None, Json]:
    """(field of the assistant's message, its value), or (None, a whole message)."""
    if item.get("status") in ("in_progress", "incomplete"):
        raise Unroutable("answer_to_continue")
    content = item.get("content")
    match item.get("type"):
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if item.get("namespace"):
                raise Unroutable("input_item_unknown")
            return "tool_calls", [OrderedCall(id=item.get("call_id"), function=function)]
        case "function_call_output":
            message = {"role": "tool", "tool_call_id": item.get("call_id")}
            return None, message | {"content": item.get("output")}
        case "reasoning":
            if item.get("encrypted_content"):
                raise Unroutable("input_item_unknown")
            told = _first_text(content)
            return "reasoning", _first_text(item.get("summary")) or "" if told is None else told
        case None | "message" if item.get("role") == "assistant":
            text = content if isinstance(content, str) else _first_text(content)
            if text is not None:
                return "content", text
            return None, item
        case None | "message" if "role" in item:
            return None, item
    raise Unroutable("input_item_unknown")


def _first_text(content: Json) -> str | None:
    first = content[0] if isinstance(content, list) and content else None
    text = first.get("text") if isinstance(first, dict) else None
    return text if isinstance(text, str) else None


def _string(value: Json) -> str:
    if not isinstance(value, str):
        raise Unroutable("content_part_invalid")
    return value
