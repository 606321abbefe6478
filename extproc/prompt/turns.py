"""The memo by message prefix: a known turn's text is not rendered again, only what came after it.

Let `a` be the last message of a known turn (a user message, or the answer of a tool) and A the text
up to its end. Let C be the few messages that what follows `a` may look back at: the system message,
the last question, the calls that `a` answers, and `a`. With B = render(C) and S = render(C and what
came after `a`), the new prompt is A + S[len(B):], if the template is as local as templates usually
are. That is not taken on trust: it is used only for shapes of chats (which kinds of messages, in
which order) whose first prompts were equal to the whole rendering, it is checked again by sample,
and one difference turns it off for that shape.
"""

import logging
from collections import deque
from dataclasses import dataclass
from math import inf
from threading import Lock
from typing import TypeAlias

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from extproc.errors import Unroutable
from extproc.prompt.memo import Memo
from extproc.prompt.pieces import Node, PieceMemo
from extproc.prompt.rawarray import RawArray
from extproc.prompt.renderer import Messages, Rendering
from extproc.prompt.template import ChatTemplate
from extproc.prompt.types import Json, TooNew
from extproc.stages import Stages

_log = logging.getLogger(__name__)

CHECKS = 3
"""Whole renderings that a shape must equal before it is used."""

_SAMPLE = 64
"""One prompt in so many of a used shape is checked again."""

_MAX_KINDS = 200
_MAX_SHAPES = 2_000
_MAX_AFTER = 40
"""Messages after the known turn (runs of one kind count as one) that a shape tells apart."""

_MAX_AUDITS = 4
"""Sampled prompts that wait to be checked; a further one makes a request check one itself."""

_MAX_AUDITED_BYTES = 4 << 20
"""Of the messages of a prompt that waits: they are kept for so long."""

_TURN_BYTES = 500

_ITEM_BYTES = 64
"""What an item counts at least where it is counted how much is rendered."""

_AGAIN_SHARE = 4
"""So many bytes of known messages, rendered again but not tokenized, count as a new one."""

Shape: TypeAlias = tuple[object, ...]
"""What decides whether a template is local: template, tools, options, kinds of messages."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is known about a prompt up to the end of its message `a`.

    node: the digest of its last piece that is complete. tail: the text after that piece.
    context: the indices of the items of C. size, digest: of the text B.
    question: the index of the last user message, -1 where there is none.
    kinds: of all messages so far, one bit each.
    """

    node: bytes
    tail: bytes
    context: tuple[int, ...]
    size: int
    digest: int
    question: int
    kinds: int


@dataclass(slots=True)
class Counts:
    """What the memo did; only ever grows."""

    used: int = 0
    checked: int = 0
    different: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """A chat to be encoded under the root `base`. start: what turns of such chats are known by."""

    rendering: Rendering
    base: Node
    block_size: int
    start: bytes
    clock: tuple[str, ...]
    most_new: float

    @property
    def messages(self) -> RawArray:
        return self.rendering.chat.messages

    def check_size(self) -> None:
        """Raise TooNew where going through all of the messages is more than may be done now."""
        if self.messages.size > self.most_new:
            raise TooNew

    def all_digests(self) -> list[bytes]:
        """The chained digest of every message. Raises TooNew."""
        self.check_size()
        return self.messages.all_digests()

    def is_same_time(self) -> bool:
        """Whether the template's dates are those of the request's beginning."""
        return self.rendering.template.clock() == self.clock


@dataclass(frozen=True, slots=True)
class _Guess:
    """A prompt as a known turn gives it: `node`, and `text` after it.

    items: of the turn's context and of all after its `a`, by index; kinds: of their messages.
    """

    turn: Turn
    after: int
    node: Node
    text: bytes
    items: dict[int, Messages]
    kinds: dict[int, list[int]]
    shape: Shape


@dataclass(frozen=True, slots=True)
class _Audit:
    """A prompt that was used without being checked: its digest."""

    request: _Request
    shape: Shape
    digest: bytes


class TurnMemo:
    """Known turns of one model. Thread-safe; bounded in bytes, least recently used forgotten."""

    def __init__(self, pieces: PieceMemo, cut: str, max_bytes: int) -> None:
        self._pieces = pieces
        self._cut = cut.encode()
        self._turns: Memo[bytes, Turn] = Memo(max_bytes)
        self._shapes: dict[Shape, int] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._beginnings: dict[tuple[object, ...], bytes] = {}
        self._audits: deque[_Audit] = deque()
        self._lock = Lock()
        self.counts = Counts()

    @property
    def size(self) -> int:
        """About how many bytes are remembered now."""
        return self._turns.size

    def encode(
        self,
        rendering: Rendering,
        base: Node,
        block_size: int,
        stages: Stages,
        most_new: float = inf,
    ) -> Node:
        """The prompt under the root `base`, by way of a known turn where there is one.

        most_new: bytes that may be rendered, and as many tokenized.

        Raises Unroutable where the template fails, and TooNew.
        """
        with stages.stage("render"):
            clock = rendering.template.clock()
            start = xxh3_128_digest(b"%s%r" % (base.digest, clock) + rendering.settings())
            request = _Request(rendering, base, block_size, start, clock, most_new)
            guess = self._guess(request)
            certain = guess is not None and self._shapes.get(guess.shape, 0) >= CHECKS
        if guess is not None and certain and request.is_same_time():
            return self._by_guess(request, guess, stages)
        request.check_size()
        return self._whole(request, guess, stages)

    def audit(self) -> bool:
        """Check one sampled prompt against its whole rendering; False where none waits.

        Costs a whole rendering: to be called off the path of requests.
        """
        try:
            audit = self._audits.popleft()
        except IndexError:
            return False
        text = audit.request.rendering.whole(None)
        digest = self._pieces.digest(audit.request.base, text)
        if audit.request.is_same_time():
            self._judge(audit.shape, digest == audit.digest)
        return True

    def _whole(self, request: _Request, guess: _Guess | None, stages: Stages) -> Node:
        """The prompt by rendering all of it; a guess is compared with it."""
        rendering = request.rendering
        with stages.stage("render"):
            items = rendering.items() if rendering.are_local() else None
            if items is not None and not all(map(rendering.is_local, items)):
                items = None
            text = rendering.whole(items)
        node = self._pieces.extend(request.base, text, request.block_size, stages, request.most_new)
        with stages.stage("remember"):
            if request.is_same_time():
                if guess is not None:
                    digest = self._pieces.digest(guess.node, guess.text)
                    self._judge(guess.shape, digest == node.digest)
                if items is not None:
                    turns = dict(enumerate(items))
                    kinds = self._all_kinds(rendering, turns)
                    if kinds is not None:
                        self._learn(request, turns, kinds, (request.base, text, node))
        return node

    def _by_guess(self, request: _Request, guess: _Guess, stages: Stages) -> Node:
        """The prompt as guessed; now and then it is noted for `audit`."""
        is_sample = (self.counts.used + 1) % _SAMPLE == 0
        is_audited = is_sample and request.messages.size < _MAX_AUDITED_BYTES
        if is_audited and len(self._audits) >= _MAX_AUDITS:
            if request.most_new < inf:
                raise TooNew
            self.audit()
        node = self._pieces.extend(
            guess.node, guess.text, request.block_size, stages, request.most_new
        )
        with stages.stage("remember"):
            prompt = guess.node, guess.text, node
            self._learn(request, guess.items, guess.kinds, prompt, guess)
        self.counts.used += 1
        if is_audited:
            self._audits.append(_Audit(request, guess.shape, node.digest))
        return node

    def _guess(self, request: _Request) -> _Guess | None:
        """The prompt by the latest known turn; else by the one at its question, if that may do."""
        found = self._find(request)
        if found is None:
            return None
        after, turn = found
        guess = self._guess_after(request, after, turn)
        if guess is None and 0 <= turn.question < after:
            digest = request.all_digests()[turn.question]
            asked = self._turns.get(request.start + digest)
            if asked is not None:
                guess = self._guess_after(request, turn.question, asked)
        return guess

    def _guess_after(self, request: _Request, after: int, turn: Turn) -> _Guess | None:
        """None where the turn's pieces are forgotten, or its shape is off."""
        rendering = request.rendering
        is_base = turn.node == request.base.digest
        node = request.base if is_base else self._pieces.find(turn.node)
        if node is None:
            return None
        indices = [*turn.context, *range(after + 1, len(request.messages))]
        again = request.messages.sizes(turn.context) // _AGAIN_SHARE
        if len(indices) * _ITEM_BYTES + again > request.most_new:
            raise TooNew
        items = dict(zip(indices, rendering.items(indices), strict=True))
        kinds = self._all_kinds(rendering, items)
        shape = None if kinds is None else _shape(rendering, turn, kinds)
        if kinds is None or shape is None or self._shapes.get(shape, 0) < 0:
            return None
        try:
            text = rendering.part(items.values(), opens_answer=True)
        except Unroutable:
            text = b""
        if xxh3_64_intdigest(text[: turn.size]) != turn.digest:
            if request.is_same_time():
                self._judge(shape, equal=False)
            return None
        return _Guess(turn, after, node, turn.tail + text[turn.size :], items, kinds, shape)

    def _find(self, request: _Request) -> tuple[int, Turn] | None:
        """The latest known turn that the messages begin with, and the index of its `a`."""
        messages = request.messages
        digests = messages.digests()
        while True:
            for i in range(1, len(digests) + 1):
                turn = self._turns.get(request.start + digests[-i])
                if turn is not None:
                    return len(messages) - i, turn
            if len(digests) == len(messages):
                return None
            digests = request.all_digests()

    def _all_kinds(
        self, rendering: Rendering, items: dict[int, Messages]
    ) -> dict[int, list[int]] | None:
        """The kinds of all messages, by item; None where one is not local, or of too many kinds."""
        kinds = {}
        for i, item in items.items():
            found = [self._kind(rendering.template, message) for message in item]
            if -1 in found or not rendering.is_local(item):
                return None
            kinds[i] = found
        return kinds

    def _kind(self, template: ChatTemplate, message: dict[str, Json]) -> int:
        """A number for all messages that the template may treat alike; -1: too many kinds."""
        content = message["content"]
        types: tuple[str, ...] = ()
        if isinstance(content, str):
            text = content
        else:
            text = "".join(part.get("text", "") for part in content)
            types = tuple(sorted({part["type"] for part in content}))
        key = (
            *message,
            types,
            message["role"],
            min(len(message.get("tool_calls", ())), 2),
            bool(message.get("reasoning")),
            bool(text),
            *[marker in text for marker in template.markers],
        )
        kind = self._kinds.get(key)
        if kind is None:
            with self._lock:
                if len(self._kinds) >= _MAX_KINDS:
                    return -1
                kind = self._kinds.setdefault(key, len(self._kinds))
        return kind

    def _learn(
        self,
        request: _Request,
        items: dict[int, Messages],
        kinds: dict[int, list[int]],
        prompt: tuple[Node, bytes, Node],
        guess: _Guess | None = None,
    ) -> None:
        """Remember this prompt up to its last question or answer of a tool.

        items: by index, in order; all of the chat, or those of a guess. kinds: of their messages.
        prompt: a node, the text after it, and the node of the whole prompt.
        """
        ends = {i: item[-1]["role"] for i, item in items.items() if item}
        a = max((i for i, role in ends.items() if role in ("user", "tool")), default=-1)
        if a <= (guess.after if guess else -1):
            return
        question = max((i for i, role in ends.items() if role == "user"), default=-1)
        context = _context(ends, a, question, request.rendering.has_leading)
        later = [items[i] for i in items if i > a]
        parts = self._parts(request.rendering, [items[i] for i in context], later, kinds[a])
        if parts is None:
            return
        known, rest = parts
        if not prompt[1].endswith(rest):
            return
        node, tail = self._split_at(prompt, len(prompt[1]) - len(rest))
        seen = guess.turn.kinds if guess else 0
        for i, found in kinds.items():
            if i <= a:
                for kind in found:
                    seen |= 1 << kind
        size, digest = len(known), xxh3_64_intdigest(known)
        turn = Turn(node.digest, tail, context, size, digest, question, seen)
        digests = request.messages.digests()
        if len(request.messages) - a > len(digests):
            digests = request.all_digests()
        key = request.start + digests[a - len(request.messages)]
        self._turns.put(key, turn, _TURN_BYTES + len(tail))

    def _split_at(self, prompt: tuple[Node, bytes, Node], size: int) -> tuple[Node, bytes]:
        """The first `size` bytes of a prompt's text: their last whole piece, and the rest."""
        before, text, node = prompt
        cut = text.rfind(self._cut, 0, size)
        if cut < 0:
            return before, text[:size]
        for _ in range(text.count(self._cut, cut)):
            assert node.parent is not None
            node = node.parent
        return node, text[cut:size]

    def _parts(
        self,
        rendering: Rendering,
        context: list[Messages],
        later: list[Messages],
        kinds: list[int],
    ) -> tuple[bytes, bytes] | None:
        """B, and what the template writes after it for the messages after `a`; None if it does not.

        What it writes for none, the beginning of the answer, is the same for all chats of these
        options and `kinds` of `a`, but for templates that are not local, and those are found out.
        """
        key = (id(rendering.template), rendering.options_digest, *kinds)
        try:
            opened = rendering.part([*context, *later], opens_answer=True)
            beginning = None if later else self._beginnings.get(key)
            if beginning is not None and opened.endswith(beginning):
                return opened[: len(opened) - len(beginning)], beginning
            known = rendering.part(context, opens_answer=False)
        except Unroutable:
            return None
        if not opened.startswith(known):
            return None
        rest = opened[len(known) :]
        if not later and len(self._beginnings) < _MAX_SHAPES:
            self._beginnings[key] = rest
        return known, rest

    def _judge(self, shape: Shape, equal: bool) -> None:
        """Count a comparison; a difference turns the shape off for good."""
        with self._lock:
            checks = self._shapes.get(shape)
            if checks is None and len(self._shapes) >= _MAX_SHAPES:
                return
            self.counts.checked += 1
            if equal:
                if checks is None or checks >= 0:
                    self._shapes[shape] = (checks or 0) + 1
                return
            self.counts.different += 1
            self._shapes[shape] = -1
        if checks is None or checks >= 0:
            _log.info("chat template is not local for a shape of chats; it is rendered whole")


def _shape(rendering: Rendering, turn: Turn, kinds: dict[int, list[int]]) -> Shape | None:
    """What the template may look at: all kinds before, and those from the context on in order."""
    order: list[tuple[int, bool]] = []
    for found in kinds.values():
        for kind in found:
            if order and order[-1][0] == kind:
                order[-1] = (kind, True)
            else:
                order.append((kind, False))
    if len(order) > _MAX_AFTER:
        return None
    has_tools = None if rendering.tools is None else bool(rendering.tools)
    return id(rendering.template), has_tools, rendering.options_digest, turn.kinds, tuple(order)


def _context(ends: dict[int, str], a: int, question: int, has_leading: bool) -> tuple[int, ...]:
    """The indices of what messages after `a` may look back at.

    ends: the role of each item's last message.
    """
    context = set()
    if not has_leading and ends.get(0) in ("system", "developer"):
        context.add(0)
    if question >= 0:
        context.add(question)
    first = a
    if ends[a] == "tool":
        while first > question + 1 and first - 1 in ends and ends[first] != "assistant":
            first -= 1
    context.update(range(first, a + 1))
    return tuple(sorted(context))
