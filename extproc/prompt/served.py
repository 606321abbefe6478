"""A served model: its tokenizer and chat template together, from prompt to block keys."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Protocol, TypeVar

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.blocks import block_keys
from extproc.prompt.dialects import ToolsChanged, settle_tools
from extproc.prompt.harmony import Harmony
from extproc.prompt.mistral import Mistral
from extproc.prompt.modelfiles import TokenizerMode, is_gpt_oss, mistral_file, read_templates
from extproc.prompt.pieces import NO_IDS, Node, PieceMemo, root_node, safe_cuts
from extproc.prompt.rawarray import RawArray
from extproc.prompt.renderer import Rendering, Templates
from extproc.prompt.template import ChatTemplate
from extproc.prompt.tokenizer import PROBE, TextTokenizer, Tokenizer
from extproc.prompt.trials import trial_chats
from extproc.prompt.turns import CHECKS, Counts, TurnMemo
from extproc.prompt.types import Chain, Chat, Prompt, TooNew
from extproc.stages import Stages
from extproc.terms import NO_BLOCK, TOKEN_BYTES, BlockKey, TokenIds

_T = TypeVar("_T")

_MEMO_BYTES = 256 << 20
"""Of which half is for pieces and half for turns."""

_WHOLE_BYTES = 8 << 10
"""Of a chat that is rendered whole: its pieces are known, and a known turn is no cheaper to use."""

_TRIAL_BLOCK = 16

_MOST_OPENING = 4 * TOKEN_BYTES
"""Ids that a tokenizer puts before a prompt; one, where there are any, in all that are known."""

_SLOWER = 8
"""How much longer others take than `fastokens`."""

_MEDIA = "HOMING:MEDIUM"
"""Marks where the first medium is; that a client writes it too only makes its chain shorter."""


class ChatEncoder(Protocol):
    """Chats → ids where no template is rendered: the model's own library does it."""

    def encode_chat(self, chat: Chat, merges_system: bool, whole: bool = True) -> TokenIds:
        """The ids of a chat's prompt. Raises Unroutable where there are none.

        merges_system: whether Anthropic's inline system messages move to the front.
        whole: raise Unroutable("media") where ids are unknown from some point on; else the ids up
            to there.
        """

    @property
    def memo_size(self) -> int:
        """About how many bytes it remembers now."""


class ServedModel:
    """One model as its engines see it. Thread-safe; made by `load`.

    memo_bytes: what is remembered of earlier prompts, about; 0 turns the memos off.
    """

    def __init__(
        self,
        name: str,
        tokenizer: TextTokenizer,
        templates: Mapping[str, ChatTemplate],
        memo_bytes: int = _MEMO_BYTES,
        whole_bytes: float = _WHOLE_BYTES,
        chats: ChatEncoder | None = None,
        trust_request_template: bool = False,
    ) -> None:
        self.name = name
        self._chats = chats
        self._tokenizer = tokenizer
        self._templates = Templates(templates, trust_request_template)
        cut = self._cut = None if chats else _best_cut(tokenizer, self._templates)
        self._opening = _opening(tokenizer)
        self._pieces = PieceMemo(cut, tokenizer.encode_pieces, memo_bytes // 2)
        self._whole_bytes = whole_bytes
        self._turns = None
        if cut and memo_bytes and whole_bytes < inf:
            self._turns = TurnMemo(self._pieces, cut, memo_bytes // 2)
            self._try(self._turns)

    @classmethod
    def load(
        cls,
        name: str,
        tokenizer: Path,
        chat_template: Path | None = None,
        *,
        memo_bytes: int = _MEMO_BYTES,
        whole_bytes: float = _WHOLE_BYTES,
        now: Callable[[], datetime] = datetime.now,
        trust_request_template: bool = False,
        mode: TokenizerMode = "auto",
    ) -> "ServedModel":
        """Read the model's files; blocks for about a second.

        tokenizer: a directory with tokenizer.json, and beside it tokenizer_config.json,
            chat_template.jinja and config.json where there are any; or with a file of Mistral's.
        chat_template: a file that takes the place of the model's own.
        memo_bytes: the bound of what is remembered of prompts; 0 remembers nothing.
        whole_bytes: of messages; up to so many a known turn spares no rendering (see turns.py).
        now: the engine's clock, for templates that write the date; without a time zone, as there.
        trust_request_template: whether a template that a request brings is rendered, in the
            sandbox; only for engines that do so (vLLM's `--trust-request-chat-template`).
        mode: whose files are read, as vLLM's `--tokenizer-mode` (see `mistral_file`).

        Raises ConfigError that names the file and what is wrong with it.
        """
        if not tokenizer.is_dir():
            raise ConfigError(f"{tokenizer}: not a directory")
        own = mistral_file(tokenizer, mode)
        templates = {} if own else read_templates(tokenizer, chat_template, now)
        texts: TextTokenizer
        chats: ChatEncoder | None
        try:
            if own is not None:
                texts = chats = Mistral(own, memo_bytes)
            else:
                chats = Harmony(now, memo_bytes) if is_gpt_oss(tokenizer) else None
                texts = Tokenizer(tokenizer / "tokenizer.json")
        except ImportError:
            extra = "harmony" if own is None else "mistral"
            raise ConfigError(f"{tokenizer}: needs homing[{extra}]") from None
        return cls(
            name,
            texts,
            templates,
            memo_bytes,
            whole_bytes,
            chats,
            trust_request_template,
        )

    @property
    def counts(self) -> Counts:
        """What the memo by message prefix did."""
        return self._turns.counts if self._turns else Counts()

    @property
    def memo_size(self) -> int:
        """About how many bytes the memos hold now."""
        turns = self._turns.size if self._turns else 0
        chats = self._chats.memo_size if self._chats else 0
        return self._pieces.size + turns + chats

    def render(self, chat: Chat) -> str:
        """The text of a chat's prompt. Raises Unroutable where there is no template or it fails."""
        return Rendering(chat, self._templates).whole(None).decode()

    def token_ids(self, prompt: Prompt) -> tuple[TokenIds, ...]:
        """The ids of each prompt of the request, as the engine computes them, without memos."""
        return _settled(self._token_ids, prompt)

    def _token_ids(self, prompt: Prompt, whole: bool = True) -> tuple[TokenIds, ...]:
        content = prompt.content
        if isinstance(content, Chat):
            if self._chats:
                return (self._chats.encode_chat(content, self._templates.merges_system, whole),)
            return (self._tokenizer.encode(self.render(content), content.add_special_tokens),)
        return tuple(
            self._tokenizer.encode(item, content.add_special_tokens)
            if isinstance(item, str)
            else item
            for item in content.prompts
        )

    def encode(
        self,
        prompt: Prompt,
        root: BlockKey,
        block_size: int,
        stages: Stages,
        most_new: float = inf,
    ) -> tuple[Chain, ...]:
        """The chain of block keys of each prompt of the request, all starting at `root`.

        most_new: bytes that may be rendered, and as many tokenized: what is not known already.
            With a slow tokenizer, some of them.

        Records the stages render, tokenize, hash and remember. Raises Unroutable where template or
        tokenizer fail, and TooNew. The next turn of a known conversation costs only what is new.
        Before the first image, sound or video the chain ends, and its tokens are counted up to
        there: what comes after depends on the engine's multi-modal processor.
        """
        return _settled(
            lambda prompt: self._encode(prompt, root, block_size, stages, most_new),
            prompt,
            most_new,
        )

    def _encode(
        self,
        prompt: Prompt,
        root: BlockKey,
        block_size: int,
        stages: Stages,
        most_new: float,
    ) -> tuple[Chain, ...]:
        if not self._tokenizer.fast:
            most_new /= _SLOWER
        content = prompt.content
        if isinstance(content, Chat) and not self._chats:
            opening = self._opening if content.add_special_tokens else NO_IDS
            if opening is not None:
                base = root_node(root, block_size, opening)
                return (self._encode_chat(content, base, block_size, stages, most_new),)
        if prompt.size > most_new:
            raise TooNew
        with stages.stage("tokenize"):
            prompts = self._token_ids(prompt, whole=False)
        with stages.stage("hash"):
            return tuple(
                Chain(block_keys(ids, root, block_size), len(ids) // TOKEN_BYTES) for ids in prompts
            )

    def audit(self) -> bool:
        """Check one remembered prompt against its whole rendering; False where none waits.

        To be called off the path of requests, from time to time.
        """
        return self._turns is not None and self._turns.audit()

    def tokenize(self, text: str) -> TokenIds:
        """Ids of a plain text, without the tokens that begin or end a prompt."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: TokenIds) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode(ids)

    def _encode_chat(
        self, chat: Chat, base: Node, block_size: int, stages: Stages, most_new: float
    ) -> Chain:
        if chat.template is not None and most_new < inf:
            raise TooNew  # it has to be compiled
        rendering = Rendering(chat, self._templates)
        try:
            continued = rendering.options.get("continue_final_message")
            is_short = chat.messages.size <= self._whole_bytes
            if self._turns and not (is_short or continued or chat.template):
                node = self._turns.encode(rendering, base, block_size, stages, most_new)
            else:
                if chat.messages.size > most_new:
                    raise TooNew
                with stages.stage("render"):
                    text = rendering.whole(None)
                node = self._pieces.extend(base, text, block_size, stages, most_new)
        except Unroutable as unroutable:
            if unroutable.reason != "media":
                raise
            if chat.messages.size > most_new:
                raise TooNew from None
            with stages.stage("render"):
                text = self._before_media(rendering)
            node = self._pieces.extend(base, text, block_size, stages, most_new)
        return Chain(node.all_keys(), node.tokens)

    def _try(self, turns: TurnMemo) -> None:
        """Find the usual shapes of chats for which known turns may be used: some 50 ms."""
        base = root_node(NO_BLOCK, _TRIAL_BLOCK)
        for chat in trial_chats(CHECKS + 1):
            with suppress(Unroutable):
                turns.encode(Rendering(chat, self._templates), base, _TRIAL_BLOCK, Stages())

    def _before_media(self, rendering: Rendering) -> bytes:
        """The text up to the piece that has the first image, sound or video."""
        text = rendering.whole(None, media=_MEDIA)
        at = text.find(_MEDIA.encode())
        if at < 0 or self._cut is None:
            raise Unroutable("media")
        return text[: max(text.rfind(self._cut.encode(), 0, at), 0)]


def _settled(read: Callable[[Prompt], _T], prompt: Prompt, most_new: float = inf) -> _T:
    """What is read of a prompt, with the tools of its end where its messages change them."""
    try:
        return read(prompt)
    except ToolsChanged:
        if prompt.size > most_new:
            raise TooNew from None
        assert isinstance(prompt.content, Chat)
        return read(replace(prompt, content=settle_tools(prompt.content)))


def _opening(tokenizer: TextTokenizer) -> TokenIds | None:
    """The few ids that begin a prompt with special tokens; None where that is not all they are."""
    plain, whole = (tokenizer.encode(PROBE, special) for special in (False, True))
    opening = TokenIds(whole.removesuffix(plain))
    return opening if opening + plain == whole and len(opening) <= _MOST_OPENING else None


def _best_cut(tokenizer: TextTokenizer, templates: Templates) -> str | None:
    """The token that cuts chats into the most pieces."""
    roles = ("user", "assistant", "user", "assistant", "user")
    chat = Chat(RawArray.of([{"role": role, "content": "x"} for role in roles]))
    try:
        text = Rendering(chat, templates).whole(None).decode()
    except Unroutable:
        return None
    return max(safe_cuts(tokenizer.source, text), key=text.count, default=None)
