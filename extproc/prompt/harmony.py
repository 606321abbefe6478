"""gpt-oss: chats are rendered by OpenAI's harmony library to token ids, not by a Jinja template.

As vLLM 0.32.0 does it: openai/parser/harmony_utils.py, and openai/responses/harmony.py for items of
the Responses API. Needs the extra `homing[harmony]`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any

from xxhash import xxh3_128_digest

from extproc.errors import Unroutable
from extproc.prompt.dialects import chat_messages, tools_of
from extproc.prompt.ids import pack_ids
from extproc.prompt.memo import Memo
from extproc.prompt.normalise import normalise_tools
from extproc.prompt.types import Chat, Dialect, Json
from extproc.terms import TokenIds

_EFFORTS = ("low", "medium", "high")

_MESSAGE_BYTES = 250
"""About what a known message takes besides its ids."""


class Harmony:
    """Chats of a gpt-oss model → ids. Thread-safe. Raises ImportError without the extra.

    A prompt is its messages' ids one after another, so those of known messages are not made again.

    now: the engine's clock; the date is part of every prompt.
    memo_bytes: the bound of the ids that are kept.
    """

    def __init__(self, now: Callable[[], datetime], memo_bytes: int) -> None:
        import openai_harmony

        self._lib = openai_harmony
        self._now = now
        self._encoding = openai_harmony.load_harmony_encoding(
            openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS
        )
        self._start, self._channel, self._constrain, self._message = (
            self._encoding.encode(token, allowed_special="all")[0]
            for token in ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
        )
        opening = self._encoding.encode("<|start|>assistant", allowed_special="all")
        self._opening = pack_ids(opening)
        self._known: Memo[bytes, TokenIds] = Memo(memo_bytes)

    @property
    def memo_size(self) -> int:
        """About how many bytes are kept now."""
        return self._known.size

    def encode_chat(self, chat: Chat, merges_system: bool, whole: bool = True) -> TokenIds:
        """The ids of a chat's prompt. Raises Unroutable where vLLM refuses it too.

        merges_system: whether Anthropic's inline system messages move to the front.
        whole: makes no difference: images are nothing in these prompts.
        """
        try:
            if chat.dialect is Dialect.RESPONSES:
                items = chat.messages.decoded()
                return self._ids(chat, items, chat.system, self._of_items)
            messages = chat_messages(chat, merges_system)
            return self._ids(chat, messages, None, self._of_messages)
        except Unroutable:
            raise
        except Exception as error:  # the library's own types refuse what they cannot hold
            raise Unroutable("harmony_failed", type(error).__name__) from None

    def _ids(
        self,
        chat: Chat,
        messages: list[Json],
        instructions: str | None,
        convert: Callable[[list[Json]], Iterable[Any]],
    ) -> TokenIds:
        """instructions: None where they may be the first of the messages."""
        if instructions is None and messages and _role(messages[0]) in ("system", "developer"):
            instructions, messages = _flat(messages[0].get("content")), messages[1:]
        effort = chat.effort
        if effort == "none" and chat.dialect is Dialect.ANTHROPIC:
            effort = "low"  # harmony refuses "none", so vLLM disables thinking by "low"
        tools = normalise_tools(tools_of(chat))
        rendered = [self._system(effort)]
        if instructions or tools:
            rendered.append(self._developer(instructions, tools))
        rendered += convert(messages)
        options = self._lib.RenderOptions(conversation_has_function_tools=bool(tools))
        ids = [self._render(message, options) for message in _without_old_analysis(rendered)]
        return TokenIds(b"".join([*ids, self._opening]))

    def _render(self, message: Any, options: Any) -> TokenIds:
        """The ids of one message; all that the library is told of the others is in the options."""
        has_tools: bool = options.conversation_has_function_tools
        key = xxh3_128_digest(message.to_json().encode()) + bytes((has_tools,))
        ids = self._known.get(key)
        if ids is None:
            ids = pack_ids(self._with_plain_header(self._encoding.render(message, options)))
            self._known.put(key, ids, _MESSAGE_BYTES + len(ids))
        return ids

    def _system(self, effort: str | None) -> Any:
        content = self._lib.SystemContent.new()
        if effort is not None:
            if effort not in _EFFORTS:
                raise Unroutable("reasoning_effort_unknown")
            content = content.with_reasoning_effort(self._lib.ReasoningEffort[effort.upper()])
        content = content.with_conversation_start_date(self._now().strftime("%Y-%m-%d"))
        return self._lib.Message.from_role_and_content(self._lib.Role.SYSTEM, content)

    def _developer(
        self, instructions: str | None, tools: Sequence[Mapping[str, Json]] | None = None
    ) -> Any:
        content = self._lib.DeveloperContent.new()
        if instructions is not None:
            content = content.with_instructions(instructions)
        if tools:
            content = content.with_function_tools(
                [
                    self._lib.ToolDescription.new(
                        name=tool["function"]["name"],
                        description=tool["function"]["description"] or "",
                        parameters=tool["function"]["parameters"],
                    )
                    for tool in tools
                ]
            )
        return self._lib.Message.from_role_and_content(self._lib.Role.DEVELOPER, content)

    def _of_messages(self, messages: list[Json]) -> Iterable[Any]:
        names = {
            call.get("id"): call["function"].get("name")
            for message in messages
            for call in message.get("tool_calls") or ()
        }
        return chain.from_iterable(self._messages(message, names) for message in messages)

    def _messages(self, message: Mapping[str, Json], names: Mapping[str, str]) -> list[Any]:
        """`parse_chat_input_to_harmony_message`: one chat message is one or several of harmony."""
        role, content = _role(message), message.get("content")
        if role == "assistant":
            return self._assistant(message)
        if role == "tool":
            name = names.get(message.get("tool_call_id", ""), "")
            return [self._answer(name, _flat(content) or "")]
        if role in ("system", "developer"):
            instructions = _flat(content)
            return [] if instructions is None else [self._developer(instructions)]
        return [self._lib.Message.from_role_and_contents(role, self._texts(content))]

    def _assistant(self, message: Mapping[str, Json]) -> list[Any]:
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        thought = [self._said(reasoning, "analysis")] if reasoning else []
        calls = message.get("tool_calls")
        if not calls:
            texts = self._texts(message.get("content"))
            if not (texts and texts[0].text):
                return thought
            said = self._lib.Message.from_role_and_contents(self._lib.Role.ASSISTANT, texts)
            return [*thought, said.with_channel("final")]
        content = _flat(message.get("content"))
        said = [self._said(content, "commentary")] if content else []
        return said + thought + [self._call(call["function"]) for call in calls]

    def _of_items(self, items: list[Json]) -> Iterator[Any]:
        """`response_input_to_harmony`: one item is one message of harmony, or none."""
        names: dict[str, str] = {}
        for item in items:
            match item.get("type"):
                case None | "message":
                    yield from self._item(item)
                case "reasoning":
                    if parts := item.get("content"):
                        yield self._said("\n".join(part["text"] for part in parts), "analysis")
                case "function_call":
                    names[item["call_id"]] = item["name"]
                    yield self._call(item)
                case "function_call_output":
                    if item["call_id"] not in names:
                        raise Unroutable("tool_call_invalid")
                    yield self._answer(names[item["call_id"]], item["output"])
                case _:
                    raise Unroutable("input_item_unknown")

    def _item(self, item: Mapping[str, Json]) -> Iterator[Any]:
        role, content = _role(item), item["content"]
        if role in ("system", "developer"):
            if text := _flat(content):
                yield self._developer(text)
            return
        message = self._lib.Message.from_role_and_contents(role, self._texts(content))
        yield message.with_channel("final") if role == "assistant" else message

    def _said(self, text: str, channel: str) -> Any:
        message = self._lib.Message.from_role_and_content(self._lib.Role.ASSISTANT, text)
        return message.with_channel(channel)

    def _call(self, function: Mapping[str, Json]) -> Any:
        call = self._said(function.get("arguments") or "", "commentary")
        return call.with_recipient(f"functions.{function.get('name', '')}").with_content_type(
            "json"
        )

    def _answer(self, name: str, text: str) -> Any:
        author = self._lib.Author.new(self._lib.Role.TOOL, f"functions.{name}")
        answer = self._lib.Message.from_author_and_content(author, text)
        return answer.with_channel("commentary").with_recipient("assistant")

    def _texts(self, content: Json) -> list[Any]:
        parts = (
            [{"text": content or ""}] if content is None or isinstance(content, str) else content
        )
        return [self._lib.TextContent(text=part.get("text", "")) for part in parts]

    def _with_plain_header(self, ids: list[int]) -> list[int]:
        """The header of a call as gpt-oss knows it (`_use_legacy_tool_call_headers`).

        The library writes `assistant`, channel, `commentary to=x `, constrain, `json`; vLLM makes
        that `assistant to=x`, channel, `commentary json`.
        """
        try:
            end = ids.index(self._message)
            channel = ids.index(self._channel, 0, end)
            constrain = ids.index(self._constrain, channel, end)
        except ValueError:
            return ids
        decode = self._encoding.decode
        # Else the library compiles a pattern of all special tokens for each call: 6 ms.
        encode = partial(self._encoding.encode, disallowed_special=())
        author = decode(ids[1:channel])
        name, to, recipient = decode(ids[channel + 1 : constrain]).partition(" to=")
        kind = decode(ids[constrain + 1 : end])
        if author != "assistant" or not (to and name and kind and recipient.strip()):
            return ids
        if not recipient.endswith(" "):
            return ids
        plain = [self._start, *encode(f"assistant to={recipient[:-1]}"), self._channel]
        return [*plain, *encode(f"{name} {kind}"), *ids[end:]]


def _role(message: Mapping[str, Json]) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise Unroutable("message_without_role")
    return role


def _flat(content: Json) -> str | None:
    """The texts of a content in one; None where it has none (`flatten_input_text_content`)."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [item if isinstance(item, str) else item.get("text") for item in content]
    texts = [text for text in texts if text is not None]
    return "".join(texts) if texts else None


def _without_old_analysis(messages: list[Any]) -> list[Any]:
    """Reasoning is dropped before the last final answer (`auto_drop_analysis_messages`)."""
    finals = (i for i, message in enumerate(messages) if message.channel == "final")
    last = max(finals, default=-1)
    return [
        message for i, message in enumerate(messages) if i >= last or message.channel != "analysis"
    ]
