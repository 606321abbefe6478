"""One ext_proc stream, without I/O: the proxy's messages in, commands for the shell out."""

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from extproc.stream.events import (
    AnswerBody,
    Answered,
    Ask,
    BodyMode,
    BodyRewriter,
    Command,
    Finish,
    Pick,
    Refusal,
    Reply,
    Request,
    Send,
)
from extproc.stream.headers import CONFORMANCE_SERVED, REQUEST_METHOD, REQUEST_PATH
from extproc.stream.messages import (
    CONTINUE,
    PARTS,
    Part,
    build_headers,
    build_more_time,
    build_picked,
    build_refused,
    build_replaced,
    build_reply,
    build_streamed,
    control_headers,
    ends,
    read_attribute,
    read_flags,
    read_headers,
    read_outcome,
    read_pool,
    read_protocol,
    read_served,
    read_subset,
)
from extproc.stream.states import ANSWER_TABLE, REQUEST_TABLE, Action, Event, Mode, State
from proto_gen.ext_proc_pb2 import ProcessingRequest

DUPLEX: Final = frozenset((BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC))
"""Modes in which a chunk that is not sent back is lost."""

SAFE_CHUNK_BYTES: Final = 62_000
"""A chunk of a rewritten body is no larger than this or the largest chunk that the proxy sent:
some proxies cap a message at 64 KiB."""

_REQUEST_MODES: Final = {
    BodyMode.NONE: Mode.HEADERS_ONLY,
    BodyMode.STREAMED: Mode.STREAMED,
    BodyMode.BUFFERED: Mode.BUFFERED,
    BodyMode.BUFFERED_PARTIAL: Mode.PARTIAL,
    BodyMode.FULL_DUPLEX_STREAMED: Mode.HELD,
    # A gRPC client may wait for an answer before it ends its request: holding would hang it.
    BodyMode.GRPC: Mode.STREAMED,
}
_ANSWER_MODES: Final = {
    **_REQUEST_MODES,
    BodyMode.FULL_DUPLEX_STREAMED: Mode.STREAMED,
}

_Held: TypeAlias = tuple[Part, bytes | memoryview, bytes]
"""A part that is not answered yet, the data of a body chunk, and its flags."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What the operator decides about streams; sizes in bytes.

    fallback_request_mode, fallback_response_mode: where the proxy does not announce its modes.
    max_body_bytes: a larger body is not known to the pick, and not held further.
    max_chunks: as many chunks are held at most.
    max_early_bytes: as max_body_bytes, for a proxy in STREAMED that does not wait for the headers'
        answer: it stops sending at its buffer limit, by default 1 MiB, and would wait for ever.
    allow_mode_override: whether the proxy follows `mode_override`. Where it does not, picks of
        streams in STREAMED and NONE are lost if this is set.
    conformance: name who answered in a response header, for a conformance suite.
    """

    fallback_request_mode: BodyMode = BodyMode.BUFFERED
    fallback_response_mode: BodyMode = BodyMode.NONE
    max_body_bytes: int = 32 * 1024 * 1024
    max_chunks: int = 16_384
    max_early_bytes: int = 1024 * 1024
    allow_mode_override: bool = False
    conformance: bool = False


@dataclass(slots=True)
class _Side:
    """The request or the answer. wire: the body mode as the proxy knows it."""

    wire: BodyMode
    mode: Mode
    state: State = State.IDLE


class Stream:
    """One HTTP request and its answer. Methods never raise and never block.

    The shell passes each message to `receive`, runs the commands in order, and answers an `Ask`
    with one of `picked`, `refused` and `pass_on`. Where `deadline` came first, the late answer
    does nothing. It may read on while an `Ask` is open; what is held is bounded, except by the
    size of one message, by twice the limits of the settings.
    """

    __slots__ = (
        "_announced",
        "_answer",
        "_begun",
        "_bound",
        "_headers",
        "_held",
        "_may_override",
        "_pick",
        "_pool",
        "_remove",
        "_request",
        "_rewriter",
        "_settings",
        "_subset",
        "_watching",
        "_whole",
        "held_bytes",
    )

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._begun = False
        self._settle(settings.fallback_request_mode, settings.fallback_response_mode, early=False)
        self._headers: dict[str, str] = {}
        self._remove: list[str] = []
        self._subset: tuple[str, ...] | None = None
        self._pool: str | None = None
        self._held: list[_Held] = []
        self.held_bytes = 0
        """Bytes of the request's body that are held now."""
        self._whole = False
        self._pick: Pick | None = None
        self._watching = False
        self._rewriter: BodyRewriter | None = None
        self._announced = False
        """Whether the answer's headers announce the size of its body."""

    def _settle(self, request: BodyMode, answer: BodyMode, early: bool) -> None:
        """The modes are known. early: in STREAMED the body does not wait for any answer."""
        early = early and request is BodyMode.STREAMED
        settings = self._settings
        self._request = _Side(request, Mode.HELD if early else _REQUEST_MODES[request])
        self._answer = _Side(answer, _ANSWER_MODES[answer])
        self._bound = settings.max_early_bytes if early else settings.max_body_bytes
        self._may_override = (
            settings.allow_mode_override
            and not early
            and request not in DUPLEX
            and answer not in DUPLEX
        )

    # --- for gauges ---

    @property
    def state(self) -> str:
        """How far it is, for a gauge's label: `request_holding`, `answer_passing`, `closed`…"""
        side, name = self._request, "request"
        if side.state is State.CLOSED:
            return "closed"
        if side.state is State.DONE or self._answer.state is not State.IDLE:
            side, name = self._answer, "answer"
        return f"{name}_{side.state.name.lower()}"

    @property
    def holding(self) -> bool:
        """Whether the proxy waits for answers of ours to parts of the request."""
        return bool(self._held)

    # --- for whoever wants to leave before the proxy does ---

    @property
    def settled(self) -> bool:
        """Whether nothing of ours is wanted any more: a clean close now changes nothing.

        The request is placed, and of the answer was seen all that was to be read.
        """
        answer = self._answer
        reading = self._watching or self._rewriter is not None
        seen = answer.state is State.DONE if reading else answer.state is not State.IDLE
        placed = self._request.state in (State.PASSING, State.DONE, State.CLOSED)
        return placed and seen and self.can_leave

    @property
    def can_leave(self) -> bool:
        """Whether a clean close now loses nothing: the proxy goes on alone, if need be unpicked.

        It would lose what is held, and in FULL_DUPLEX_STREAMED whatever of a body is under way. An
        answer that is rewritten then ends as the engine sends it.
        """
        midway = self._rewriter is not None and self._rewriter.midway
        return not (self._held or midway) and not any(
            side.wire in DUPLEX and side.state not in (State.DONE, State.CLOSED)
            for side in (self._request, self._answer)
        )

    # --- what the proxy says ---

    def receive(self, message: ProcessingRequest) -> list[Command]:
        """One message from the proxy. An illegal one ends the stream."""
        if self._request.state is State.CLOSED:
            return []
        if message.observability_mode:
            return self._observe(message)
        if not self._begun:
            self._begun = True
            try:
                protocol = read_protocol(message)
            except ValueError:
                return self._end("unknown_body_mode")
            if protocol is not None:
                self._settle(*protocol)
        part = PARTS.get(message.WhichOneof("request"))
        match part:
            case None:
                return self._end("no_message")
            case Part.REQUEST_HEADERS:
                return self._request_headers(message)
            case Part.REQUEST_BODY:
                chunk = message.request_body
                return self._request_part(message, part, chunk.body, read_flags(chunk))
            case Part.REQUEST_TRAILERS:
                return self._request_part(message, part, b"", b"")
            case Part.RESPONSE_HEADERS:
                return self._answer_headers(message)
            case Part.RESPONSE_BODY:
                chunk = message.response_body
                return self._answer_body(chunk.body, read_flags(chunk))
            case Part.RESPONSE_TRAILERS:
                return self._answer_trailers()

    def _observe(self, message: ProcessingRequest) -> list[Command]:
        """The proxy only tells, and waits for nothing."""
        if message.HasField("response_headers"):
            headers = read_headers(message.response_headers.headers)
            outcome = read_outcome(message)
            return [Answered(_status(headers), headers, read_served(message), *outcome)]
        return []

    def _request_headers(self, message: ProcessingRequest) -> list[Command]:
        side = self._request
        end = message.request_headers.end_of_stream
        if side.state is State.IDLE:
            self._headers = headers = read_headers(message.request_headers.headers)
            self._remove = control_headers(headers)
            if _is_tunnel(headers):
                side.mode = Mode.UNTOUCHED
            elif self._may_override and side.mode in (Mode.HEADERS_ONLY, Mode.STREAMED) and not end:
                side.mode = Mode.OVERRIDDEN
        return self._step(message, _headers_event(end), Part.REQUEST_HEADERS, b"", b"")

    def _request_part(
        self, message: ProcessingRequest, part: Part, data: bytes, flags: bytes
    ) -> list[Command]:
        if part is Part.REQUEST_TRAILERS:
            event = Event.TRAILERS
        elif ends(flags):
            event = Event.BODY_END
        elif self._held and self._overflows(len(data)):
            event = Event.OVERFLOW
        else:
            event = Event.BODY
        return self._step(message, event, part, data, flags)

    def _overflows(self, more: int) -> bool:
        # What comes while the question is open has room of its own.
        room = 1 if self._request.state is State.HOLDING else 2
        return (
            self.held_bytes + more > room * self._bound
            or len(self._held) >= room * self._settings.max_chunks
        )

    def _step(
        self, message: ProcessingRequest, event: Event, part: Part, data: bytes, flags: bytes
    ) -> list[Command]:
        side = self._request
        step = REQUEST_TABLE.get((side.mode, side.state, event))
        if step is None:
            return self._unexpected(part)
        action, side.state = step
        subset = read_subset(message)
        if subset is not None:
            self._subset = subset
        if self._pool is None:
            self._pool = read_pool(message)
        if action is Action.PASS:
            return [Send(self._unpicked(part, data, flags))]
        self._held.append((part, data, flags))
        self.held_bytes += len(data)
        match action:
            case Action.HOLD:
                return []
            case Action.LET_GO:
                return self._release(None)
            case Action.EMPTY:
                body: bytes | None = b""
            case Action.WHOLE:
                body = self._gather()
            case _:
                body = None
        return [Ask(self._asked(message, body))]

    def _gather(self) -> bytes | None:
        """The held chunks as one body, of which they become views; None above the bound."""
        if self.held_bytes > self._bound:
            return None
        self._whole = True
        chunks = [data for _, data, _ in self._held if data]
        # A lone chunk is the body: not copied.
        body = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        view = memoryview(body)
        at = 0
        for place, (part, data, flags) in enumerate(self._held):
            self._held[place] = (part, view[at : at + len(data)], flags)
            at += len(data)
        return body

    def _asked(self, message: ProcessingRequest, body: bytes | None) -> Request:
        headers = self._headers
        method = headers.get(":method") or read_attribute(message, REQUEST_METHOD) or ""
        path = headers.get(":path") or read_attribute(message, REQUEST_PATH) or ""
        return Request(method, path, headers, body, self._subset, self._pool)

    # --- what the shell says ---

    def picked(self, pick: Pick) -> list[Command]:
        """Answers `Ask`: the request goes to these endpoints."""
        if self._request.state not in (State.ASKING, State.ENDED):
            return []
        if not pick.endpoints:
            return self._release(None)
        # Without the body, which may be large: the rest is for the answer.
        self._pick = pick if pick.body is None else replace(pick, body=None)
        self._watching = pick.watch_answer
        return self._release(pick)

    def more_time(self, seconds: float) -> list[Command]:
        """While an `Ask` is open: the proxy is to wait for so long from now. Once a message."""
        waits = self._request.state in (State.ASKING, State.ENDED)
        return (
            [Send(build_more_time(seconds))] if waits and self._request.wire not in DUPLEX else []
        )

    def refused(self, refusal: Refusal) -> list[Command]:
        """Answers `Ask`: the client gets an error instead, unless an answer is under way to it."""
        return self._answer_client(build_refused(refusal))

    def replied(self, reply: Reply) -> list[Command]:
        """Answers `Ask`: the client has its answer, unless an engine's is under way to it."""
        return self._answer_client(build_reply(reply))

    def _answer_client(self, message: bytes) -> list[Command]:
        if self._request.state not in (State.ASKING, State.ENDED):
            return []
        if self._answer.state is not State.IDLE:
            return self._release(None)
        self._close()
        return [Send(message)]

    def pass_on(self) -> list[Command]:
        """Answers `Ask`: the proxy chooses."""
        if self._request.state not in (State.ASKING, State.ENDED):
            return []
        return self._release(None)

    def deadline(self) -> list[Command]:
        """Time is up: whatever the proxy waits for goes on, without a pick."""
        return self._release(None) if self._held else []

    # --- answers to the request's parts ---

    def _release(self, pick: Pick | None) -> list[Command]:
        """Answer all that is held, in order; the first carries the pick."""
        side = self._request
        side.state = State.DONE if side.state is State.ENDED else State.PASSING
        held, self._held, self.held_bytes = self._held, [], 0
        duplex = side.wire in DUPLEX
        body = pick.body if pick is not None and self._whole else None
        if body is not None and duplex:
            held = _recut(held, body)
        answers: list[Command] = []
        for part, data, flags in held:
            is_body = part is Part.REQUEST_BODY
            if pick is not None and not answers:
                streamed = (data, flags) if is_body and duplex else None
                remove = self._remove if part is Part.REQUEST_HEADERS else ()
                answer = build_picked(part, pick, remove, body, streamed)
            elif is_body and body is not None and not duplex:
                answer = build_replaced(part, body)
            else:
                answer = self._unpicked(part, data, flags)
            if is_body and body is not None:
                # Each chunk has its answer: the first brings the body, the rest nothing.
                body = b""
            answers.append(Send(answer))
        return answers

    def _unpicked(self, part: Part, data: bytes | memoryview, flags: bytes) -> bytes:
        side = self._request
        if part is Part.REQUEST_BODY and side.wire in DUPLEX:
            return build_streamed(part, data, flags)
        if part is not Part.REQUEST_HEADERS:
            return CONTINUE[part]
        override = None
        if side.mode is Mode.OVERRIDDEN:
            side.wire = BodyMode.BUFFERED
            override = (side.wire, self._answer.wire)
        elif side.mode is Mode.UNTOUCHED and self._may_override:
            # A proxy that buffers a tunnel's body waits for ever.
            side.wire = BodyMode.NONE
            self._show_answer(BodyMode.NONE)
            override = (side.wire, self._answer.wire)
        if not self._remove and override is None:
            return CONTINUE[part]
        return build_headers(part, headers={}, remove=self._remove, override=override)

    # --- answers to the answer's parts ---

    def _answer_headers(self, message: ProcessingRequest) -> list[Command]:
        side = self._answer
        if side.state is not State.IDLE:
            return self._unexpected(Part.RESPONSE_HEADERS)
        end = message.response_headers.end_of_stream
        headers = read_headers(message.response_headers.headers)
        status = _status(headers)
        served = read_served(message)
        # What an engine says of a failure tells nothing about its cache.
        good = 200 <= status < 300
        self._watching = self._watching and good
        if good and not end:
            self._rewriter = self._choose_rewriter(headers)
        self._announced = "content-length" in headers
        override = None
        if self._may_override and not end:
            wanted = self._wanted(headers)
            if wanted is not side.wire:
                self._show_answer(wanted)
                override = (self._request.wire, wanted)
        _, side.state = ANSWER_TABLE[side.mode, side.state, _headers_event(end)]
        ours = dict(self._pick.answer_headers) if self._pick is not None else {}
        if self._settings.conformance and served is not None:
            ours[CONFORMANCE_SERVED] = served
        part = Part.RESPONSE_HEADERS
        # Whoever does not wait for the body cannot know how long it will be.
        resized = self._rewriter is not None and side.mode is not Mode.BUFFERED
        remove = ("content-length",) if resized and self._announced else ()
        if ours or remove or override is not None:
            answer = build_headers(part, headers=ours, remove=remove, override=override)
        else:
            answer = CONTINUE[part]
        return [Send(answer), Answered(status, headers, served, *read_outcome(message))]

    def _choose_rewriter(self, headers: dict[str, str]) -> BodyRewriter | None:
        """None, too, where the proxy will not show the body."""
        choose = self._pick.rewrite_answer if self._pick is not None else None
        shown = self._may_override or self._answer.wire is not BodyMode.NONE
        return choose(headers) if choose is not None and shown else None

    def _wanted(self, headers: dict[str, str]) -> BodyMode:
        """The cheapest way to see as much of the answer's body as will be read, or changed."""
        if self._rewriter is not None:
            return BodyMode.STREAMED
        if not self._watching:
            return BodyMode.NONE
        if headers.get("content-type", "").lower().startswith("text/event-stream"):
            return BodyMode.STREAMED
        return BodyMode.BUFFERED_PARTIAL

    def _show_answer(self, wire: BodyMode) -> None:
        self._answer.wire = wire
        self._answer.mode = _ANSWER_MODES[wire]

    def _answer_body(self, data: bytes, flags: bytes) -> list[Command]:
        side = self._answer
        event = Event.BODY_END if ends(flags) else Event.BODY
        step = ANSWER_TABLE.get((side.mode, side.state, event))
        part = Part.RESPONSE_BODY
        if step is None:
            return self._unexpected(part)
        _, side.state = step
        became = self._rewritten(data, event)
        if side.wire in DUPLEX:
            answer = build_streamed(part, became, flags)
        elif became == data:
            answer = CONTINUE[part]
        else:
            announced = self._announced and side.mode is Mode.BUFFERED
            answer = build_replaced(part, became, announced)
        commands: list[Command] = [Send(answer)]
        if self._watching:
            last = event is Event.BODY_END or side.mode is Mode.BUFFERED
            commands.append(AnswerBody(data, last))
        return commands

    def _rewritten(self, data: bytes, event: Event) -> bytes:
        if self._rewriter is None:
            return data
        became = self._rewriter.feed(data)
        # The rest of a body that was cut is never shown.
        cut = self._answer.mode is Mode.PARTIAL and event is not Event.BODY_END
        return data if cut and self._rewriter.midway else became

    def _answer_trailers(self) -> list[Command]:
        side = self._answer
        step = ANSWER_TABLE.get((side.mode, side.state, Event.TRAILERS))
        if step is None:
            return self._unexpected(Part.RESPONSE_TRAILERS)
        _, side.state = step
        commands: list[Command] = [Send(CONTINUE[Part.RESPONSE_TRAILERS])]
        if self._watching and side.mode is Mode.STREAMED:
            commands.append(AnswerBody(b"", last=True))
        return commands

    # --- the end ---

    def _unexpected(self, part: Part) -> list[Command]:
        return self._end(f"unexpected_{part.name.lower()}")

    def _end(self, reason: str) -> list[Command]:
        """The proxy broke the protocol: leave in the way that costs the client least."""
        abort = self._request.wire in DUPLEX or self._answer.wire in DUPLEX
        self._close()
        return [Finish(abort, reason)]

    def _close(self) -> None:
        self._request.state = self._answer.state = State.CLOSED
        self._held = []
        self.held_bytes = 0


def _headers_event(end: bool) -> Event:
    return Event.HEADERS_END if end else Event.HEADERS


def _status(headers: dict[str, str]) -> int:
    """Envoy sends `:status`, others `status`; 0 where neither is a number of three digits."""
    text = headers.get(":status") or headers.get("status", "")
    return int(text) if len(text) == 3 and text.isascii() and text.isdigit() else 0


def _is_tunnel(headers: dict[str, str]) -> bool:
    """CONNECT, extended CONNECT, or an upgrade; one to h2c is a normal request all the same."""
    if headers.get(":method") == "CONNECT":
        return True
    upgrade = headers.get("upgrade", "").lower()
    return upgrade not in ("", "h2c") and "upgrade" in headers.get("connection", "").lower()


def _recut(held: list[_Held], body: bytes) -> list[_Held]:
    """The held parts with another body in place of theirs; its last chunk ends as theirs did."""
    part = Part.REQUEST_BODY
    before = [one for one in held if one[0] is Part.REQUEST_HEADERS]
    chunks = [one for one in held if one[0] is part]
    after = [one for one in held if one[0] is Part.REQUEST_TRAILERS]
    size = max(SAFE_CHUNK_BYTES, *(len(data) for _, data, _ in held))
    last = chunks[-1][2] if chunks else b""
    view = memoryview(body)
    cut = [view[at : at + size] for at in range(0, len(body), size)] or [view]
    pieces = [(part, data, b"") for data in cut[:-1]]
    return [*before, *pieces, (part, cut[-1], last), *after]
