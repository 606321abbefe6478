"""Mistral's own tokenizers: chats go to token ids through `mistral-common`, not a Jinja template.

As vLLM 0.32.0 does it with `--tokenizer-mode mistral`: tokenizers/mistral.py, renderers/mistral.py,
and `MistralCommonBackend` of transformers 5.19 (tokenization_mistral_common.py). Needs the extra
`homing[mistral]`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_digest

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.dialects import EFFORTS, chat_messages, tools_of
from extproc.prompt.ids import pack_ids, unpack_ids
from extproc.prompt.memo import Memo
from extproc.prompt.normalise import MEDIA_PARTS, normalise_tools, parse_arguments
from extproc.prompt.types import Chat, Dialect, Json
from extproc.terms import TOKEN_BYTES, TokenIds

_ID_LENGTH = 9
"""Characters of a tool call's id; of longer ones the last are taken."""

_EFFORT_VERSION = 15
"""The first version whose chats say how much to reason."""

_TEXT_BYTES = 250
"""About what a known text takes besides its ids."""

_HELLO = Chat.of([{"role": "user", "content": "Hi"}])


class Mistral:
    """Texts and chats of a Mistral model ↔ ids. Thread-safe.

    memo_bytes: of the ids of texts that are kept: a turn repeats those of the turn before.
    file: `tekken.json`, or SentencePiece's `tokenizer.model.v3` and the like; reading it takes
        about a second. Raises ConfigError where it is none, ImportError without the extra.
    """

    source = ""
    """There is no tokenizer.json."""

    fast = False

    def __init__(self, file: Path, memo_bytes: int) -> None:
        from mistral_common.protocol.instruct import request
        from mistral_common.tokens.tokenizers import mistral

        self._request = request.ChatCompletionRequest
        self._efforts = frozenset(request.ReasoningEffort)
        try:
            self._mistral = mistral.MistralTokenizer.from_file(file)
        except Exception as error:  # the library asserts, and raises what it parses with
            raise ConfigError(f"{file}: not a tokenizer of Mistral's: {error}") from None
        instruct: Any = self._mistral.instruct_tokenizer
        self._tokenizer: Any = instruct.tokenizer
        self._encode: Callable[..., list[int]] = self._tokenizer.encode
        self._known: Memo[bytes, TokenIds] = Memo(memo_bytes)
        # For chats alone, which the library puts together from texts. It also turns all their ids
        # back into a text, which nobody reads: a third of the time.
        self._tokenizer.encode = self._remembered
        instruct.decode = lambda tokens, special_token_policy: ""
        self._takes_effort = int(self._mistral.version.value[1:]) >= _EFFORT_VERSION
        self._disabled_effort = self._probe_disabled()

    @property
    def memo_size(self) -> int:
        """About how many bytes are kept now."""
        return self._known.size

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        """Ids of a text; what looks like a special token in it is text, as in the engines."""
        try:
            return pack_ids(self._encode(text, bos=add_special_tokens, eos=False))
        except Exception as error:  # what its libraries raise is not specified
            raise Unroutable("tokenizer_failed", type(error).__name__) from None

    def encode_pieces(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, as part of a prompt."""
        return [self.encode(text, add_special_tokens=False) for text in texts]

    def decode(self, ids: TokenIds) -> str:
        """Text of ids, special tokens left out."""
        return str(self._tokenizer.decode(unpack_ids(ids)))

    def encode_chat(self, chat: Chat, merges_system: bool, whole: bool = True) -> TokenIds:
        """The ids of a chat's prompt. Raises Unroutable where vLLM refuses it too.

        merges_system: whether Anthropic's inline system messages move to the front.
        whole: raise Unroutable("media") where there is an image or the like, whose tokens depend on
            the engine's processor; else the prompt up to the last special token before the first.
        """
        if chat.template is not None:
            raise Unroutable("request_chat_template")
        messages = chat_messages(chat, merges_system)
        if not any(map(_has_media, messages)):
            return pack_ids(self._ids(chat, messages))
        if whole:
            raise Unroutable("media")
        # What differs with what stands there is not known, nor is what may share a token with it.
        first, second = (self._ids(chat, [_put(one, text) for one in messages]) for text in "01")
        same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        while same and not self._tokenizer.is_special(first[same - 1]):
            same -= 1
        return TokenIds(pack_ids(first)[: same * TOKEN_BYTES])

    def _ids(self, chat: Chat, messages: list[Json]) -> list[int]:
        continued = bool(chat.options.get("continue_final_message"))
        answered = bool(messages) and messages[-1].get("role") == "assistant"
        if answered and chat.options.get("add_generation_prompt"):
            raise Unroutable("mistral_failed", "an answer comes last")
        effort = chat.effort
        if effort and not (isinstance(effort, str) and effort in self._efforts):
            raise Unroutable("reasoning_effort_unknown")
        if effort == "none" and chat.dialect is Dialect.ANTHROPIC:
            effort = self._disabled_effort
        try:
            if chat.dialect is not Dialect.RESPONSES:
                messages = list(map(_as_vllm_reads, messages))
            request = self._request.from_openai(
                messages=list(map(_as_library_takes, messages)),
                tools=normalise_tools(tools_of(chat)),
                continue_final_message=continued,
                reasoning_effort=effort if self._takes_effort else None,
            )
            ids: list[int] = self._mistral.encode_chat_completion(request).tokens
        except Unroutable:
            raise
        except Exception as error:  # the library judges chats by errors of many kinds
            raise Unroutable("mistral_failed", type(error).__name__) from None
        return ids

    def _remembered(self, text: str, bos: bool, eos: bool) -> list[int]:
        """What the library's own `encode` gives."""
        key = xxh3_128_digest(text.encode(errors="surrogatepass")) + bytes((bos, eos))
        known = self._known.get(key)
        if known is not None:
            return unpack_ids(known)
        ids = self._encode(text, bos=bos, eos=eos)
        packed = pack_ids(ids)
        self._known.put(key, packed, _TEXT_BYTES + len(packed))
        return ids

    def _probe_disabled(self) -> str:
        """The effort of Anthropic's `thinking: disabled`: "low" where "none" says nothing.

        (anthropic/serving.py, `_probe_disabled_thinking_effort`)
        """
        none = self._probe("none")
        if none is None or any(self._probe(effort) == none for effort in EFFORTS):
            return "low"
        return "none"

    def _probe(self, effort: str) -> list[int] | None:
        chat = Chat(_HELLO.messages, effort=effort)
        try:
            return self._ids(chat, chat.messages.decoded())
        except Unroutable:
            return None


def _as_vllm_reads(message: Json) -> Json:
    """A message as chat completions have it before any renderer: other names, short ids.

    (openai/chat_completion/protocol.py, `_normalize_messages_before`; tokenizers/mistral.py,
    `maybe_serialize_tool_calls`, `truncate_tool_call_ids`)
    """
    message = dict(message)
    reasoning = message.pop("reasoning_content", None)
    if message.get("reasoning") is None:
        message["reasoning"] = reasoning
    if message.get("role") == "assistant":
        message["tool_calls"] = [
            call | {"id": call["id"][-_ID_LENGTH:]} for call in message.get("tool_calls") or ()
        ]
    elif "tool_call_id" in message:
        message["tool_call_id"] = message["tool_call_id"][-_ID_LENGTH:]
    return message


def _as_library_takes(message: Json) -> Json:
    """The message after what vLLM and transformers do to it for `mistral-common`.

    Arguments are objects, because `_postprocess_messages` (renderers/chat_utils.py), meant for its
    own copy, changes the request's too; parts without a type are left out (`_maybe_adapt_message`).
    """
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        message = message | {"content": [part for part in content if part.get("type")]}
    if calls:
        message = message | {"tool_calls": list(map(_with_parsed_arguments, calls))}
    return message


def _with_parsed_arguments(call: Json) -> Json:
    function = call["function"]
    parsed = {"arguments": parse_arguments(function.get("arguments"))}
    return dict(call) | {"function": function | parsed}


def _is_medium(part: Json) -> bool:
    return isinstance(part, dict) and part.get("type") in MEDIA_PARTS


def _has_media(message: Json) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(map(_is_medium, content))


def _put(message: Json, text: str) -> Json:
    """The message with this text in the place of each medium."""
    if not _has_media(message):
        return message
    parts = [{"type": "text", "text": text} if _is_medium(p) else p for p in message["content"]]
    return message | {"content": parts}
