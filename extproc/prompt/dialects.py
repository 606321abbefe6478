"""Anthropic messages and Responses items → OpenAI chat messages, as vLLM 0.32.0 converts them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from extproc.errors import Unroutable
from extproc.prompt.normalise import OrderedCall
from extproc.prompt.types import Chat, Dialect, Json

_BILLING = "x-anthropic-billing-header"
_IMAGE: Json = {"type": "image_url"}
"""Which image it is is never looked at."""

EFFORTS = ("low", "medium", "high", "xhigh", "max")
"""What Anthropic's `output_config.effort` may be (`AnthropicEffort`)."""

_TOOL_CHANGES = ("tool_addition", "tool_removal")


class ToolsChanged(Unroutable):
    """Messages of the chat change its tools, so that all of them must be read: `settle_tools`."""

    def __init__(self) -> None:
        super().__init__("tool_change")


def leading_messages(chat: Chat, inline: Iterable[str] = ()) -> list[Json]:
    """The messages that a chat begins with before its own: a system text beside them.

    inline: Anthropic's system texts that are moved there.
    """
    if chat.dialect is not Dialect.ANTHROPIC:
        return [{"role": "system", "content": chat.system}] if chat.system else []
    system = chat.system or ""
    own = system if isinstance(system, str) else "".join(_anthropic_texts(system))
    text = own + "".join(inline)
    return [{"role": "system", "content": text}] if text else []


def chat_messages(chat: Chat, merges_system: bool) -> list[Json]:
    """All of a chat as OpenAI chat messages.

    merges_system: whether Anthropic's inline system messages move to the front.
    """
    items = chat.messages.decoded()
    if not (merges_system and chat.dialect is Dialect.ANTHROPIC):
        return [*leading_messages(chat), *to_chat(chat.dialect, items)]
    leading = leading_messages(chat, inline_system_texts(items))
    return [*leading, *to_chat(chat.dialect, items, merge_system=True)]


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
    tools = _tools_as_sent(chat)
    if tools is None:
        return None
    if chat.dialect is Dialect.ANTHROPIC:
        return [_anthropic_tool(tool) for tool in tools]
    if chat.dialect is Dialect.RESPONSES:
        return [_responses_tool(tool) for tool in tools]
    return tools


def _tools_as_sent(chat: Chat) -> list[dict[str, Json]] | None:
    if not chat.tools:
        return None
    tools = msgspec.json.decode(chat.tools)
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Unroutable("tools_invalid")
    return tools


def settle_tools(chat: Chat) -> Chat:
    """The chat with the tools that are in effect at its end, and without what changed them.

    (`_resolve_tools`) Reads all messages. Raises Unroutable where vLLM refuses the change.
    """
    tools: dict[str, Json] = {
        _string(tool.get("name"), "tools_invalid"): tool for tool in _tools_as_sent(chat) or ()
    }
    removed: set[str] = set()
    texts: dict[int, Json] = {}
    for i, message in enumerate(chat.messages.decoded()):
        content = message.get("content")
        if message.get("role") != "system" or not isinstance(content, list):
            continue
        for block in content:
            if isinstance(block, dict) and block.get("type") in _TOOL_CHANGES:
                _change_tools(block, tools, removed)
                kept = [
                    one for one in content if isinstance(one, dict) and one.get("type") == "text"
                ]
                texts[i] = {"role": "system", "content": kept}
    try:
        left = [tool for name, tool in tools.items() if name not in removed]
        raw = json.dumps(left, ensure_ascii=False, allow_nan=False).encode()
        messages = chat.messages.replaced(texts)
    except (ValueError, OverflowError):
        raise Unroutable("tools_invalid") from None
    return replace(chat, messages=messages, tools=raw, settings=None)


def _change_tools(block: dict[str, Json], tools: dict[str, Json], removed: set[str]) -> None:
    adds = block["type"] == "tool_addition"
    match block.get("tool"):
        case {"type": "tool_reference", "name": str(name)} if name in tools:
            if adds:  # it is no longer deferred
                tools[name] = tools[name] | {"defer_loading": None}
        case {"type": "tool_definition", "definition": {"name": str(name)} as tool} if adds:
            tools[name] = tool
        case _:
            raise Unroutable("tool_change")
    if adds:
        removed.discard(name)
    else:
        removed.add(name)


def _anthropic_texts(content: Json) -> list[str]:
    """Texts of a system prompt without Claude Code's attribution (`_extract_system_text`)."""
    if isinstance(content, str):
        return [] if content.startswith(_BILLING) else [content]
    if not isinstance(content, list):
        raise Unroutable("content_invalid")
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(block, dict) and block.get("type") in _TOOL_CHANGES:
            raise ToolsChanged
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
            case "tool_result":
                parts.append({"type": "text", "text": f"Tool result: {block.get('content') or ''}"})
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
    """A tool's answer; its images become a message after it (`_convert_user_tool_result`).

    So do the tools that it names; what else is in it, vLLM leaves out.
    """
    content = block.get("content")
    text = content if isinstance(content, str) else ""
    images: list[Json] = []
    tools: list[Json] = []
    if isinstance(content, list):
        texts = []
        for item in content:
            match item:
                case {"type": "text"}:
                    texts.append(_string(item.get("text", "")))
                case {"type": "image"}:
                    images.append(_IMAGE)
                case {"type": "tool_reference"}:
                    if name := item.get("tool_name") or item.get("name"):
                        tools.append({"type": "tool_reference", "name": name})
                case dict():
                    pass
                case _:
                    raise Unroutable("content_part_invalid")
        text = "\n".join(texts)
    answer = {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": text}
    messages: list[Json] = [answer]
    if images:
        messages.append({"role": "user", "content": images})
    if tools:
        messages.append(answer | {"content": tools})
    return messages


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


def goes_on(item: Json) -> bool:
    """Whether a Responses request ends in this answer for it to be continued.

    (`should_continue_final_message`, openai/responses/utils.py)
    """
    return item.get("type", "message") in ("message", "reasoning") and (
        item.get("status") in ("in_progress", "incomplete")
    )


def _first_text(content: Json) -> str | None:
    first = content[0] if isinstance(content, list) and content else None
    text = first.get("text") if isinstance(first, dict) else None
    return text if isinstance(text, str) else None


def _string(value: Json, reason: str = "content_part_invalid") -> str:
    if not isinstance(value, str):
        raise Unroutable(reason)
    return value
