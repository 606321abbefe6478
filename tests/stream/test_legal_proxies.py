"""A proxy that keeps the protocol is never cut off, gets every answer, and loses no byte."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.stream import (
    AnswerBody,
    Answered,
    Ask,
    BodyMode,
    Command,
    Finish,
    Pick,
    Request,
    Send,
    Stream,
    StreamSettings,
)
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.stream import proxy

ENDPOINT = Endpoint("10.0.0.1:8000")
CHUNKS = st.lists(st.binary(max_size=5), max_size=6)


@dataclass(frozen=True)
class Exchange:
    """What a client and an engine say, and how the proxy shows it."""

    request_mode: BodyMode
    response_mode: BodyMode
    early: bool
    allow_override: bool
    obeys_override: bool
    chunks: list[bytes] | None
    """None: the headers end the request."""
    trailers: bool
    answer_chunks: list[bytes] | None
    answer_trailers: bool
    cut_at: int
    """Bytes that fit the proxy's buffer, in BUFFERED_PARTIAL."""
    watch: bool
    event_stream: bool
    shell: str

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks or [])

    @property
    def answer_body(self) -> bytes:
        return b"".join(self.answer_chunks or [])


EXCHANGES = st.builds(
    Exchange,
    request_mode=st.sampled_from(BodyMode),
    response_mode=st.sampled_from(BodyMode),
    early=st.booleans(),
    allow_override=st.booleans(),
    obeys_override=st.booleans(),
    chunks=st.none() | CHUNKS,
    trailers=st.booleans(),
    answer_chunks=st.none() | CHUNKS,
    answer_trailers=st.booleans(),
    cut_at=st.integers(0, 30),
    watch=st.booleans(),
    event_stream=st.booleans(),
    shell=st.sampled_from(["pick", "pass_on", "deadline"]),
)


@dataclass
class Proxy:
    """Shows an exchange to a stream in the order that Envoy keeps."""

    exchange: Exchange
    stream: Stream
    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)
    answers: list[ProcessingResponse] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    watched: list[AnswerBody] = field(default_factory=list)
    answered: int = 0

    def run(self) -> None:
        exchange = self.exchange
        mode = self._headers("request", {":method": "POST"}, exchange.request_mode)
        mode = self._overridden(mode, "request_body_mode")
        self._body("request", mode, exchange.chunks, exchange.trailers)
        self._settle()
        kind = "text/event-stream" if exchange.event_stream else "application/json"
        response_mode = self._overridden(exchange.response_mode, "response_body_mode")
        self._headers("response", {":status": "200", "content-type": kind}, response_mode)
        response_mode = self._overridden(response_mode, "response_body_mode")
        self._body("response", response_mode, exchange.answer_chunks, exchange.answer_trailers)

    def _headers(self, side: str, values: dict[str, str], mode: BodyMode) -> BodyMode:
        exchange = self.exchange
        request = side == "request"
        chunks = exchange.chunks if request else exchange.answer_chunks
        end = chunks is None and not (exchange.trailers if request else exchange.answer_trailers)
        message = proxy.headers(side, values, end)
        if not self.sent:
            proxy.announce(message, mode, exchange.response_mode, exchange.early)
        self._send(message, f"{side}_headers", b"", end)
        if not self._flows(side, mode):
            self._settle()
        return mode

    def _flows(self, side: str, mode: BodyMode) -> bool:
        """Whether the body follows the headers without waiting for their answer."""
        early = self.exchange.early and side == "request" and mode is BodyMode.STREAMED
        return early or mode in proxy.DUPLEX

    def _body(self, side: str, mode: BodyMode, chunks: list[bytes] | None, trailers: bool) -> None:
        if chunks is not None and mode is not BodyMode.NONE:
            shown, ends = self._shown(mode, chunks or [b""], trailers)
            for place, data in enumerate(shown):
                end = ends and place == len(shown) - 1
                self._send(proxy.body(side, data, end), f"{side}_body", data, end)
            if mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
                self._settle()
        if trailers:
            self._send(proxy.trailers(side), f"{side}_trailers", b"", True)

    def _shown(
        self, mode: BodyMode, chunks: list[bytes], trailers: bool
    ) -> tuple[list[bytes], bool]:
        body = b"".join(chunks)
        if mode is BodyMode.BUFFERED:
            return [body], not trailers
        if mode is BodyMode.BUFFERED_PARTIAL:
            cut = len(body) > self.exchange.cut_at
            return [body[: self.exchange.cut_at] if cut else body], not trailers and not cut
        return chunks, not trailers

    def _overridden(self, mode: BodyMode, name: str) -> BodyMode:
        if self.exchange.obeys_override:
            for answer in self.answers:
                if answer.HasField("mode_override"):
                    mode = BodyMode(getattr(answer.mode_override, name))
        return mode

    def _send(self, message: ProcessingRequest, part: str, data: bytes, end: bool) -> None:
        self.sent.append((part, data, end))
        self._take(self.stream.receive(message))

    def _settle(self) -> None:
        """The shell answers: at the latest now, because the proxy waits."""
        if self.asked and self.stream.holding:
            match self.exchange.shell:
                case "pick":
                    pick = Pick((ENDPOINT,), watch_answer=self.exchange.watch)
                    self._take(self.stream.picked(pick))
                case "pass_on":
                    self._take(self.stream.pass_on())
                case _:
                    self._take(self.stream.deadline())

    def _take(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    self.answers.append(ProcessingResponse.FromString(command.message))
                case Ask():
                    self.asked.append(command.request)
                case AnswerBody():
                    self.watched.append(command)
                case Answered():
                    self.answered += 1
                case Finish():
                    raise AssertionError(f"a legal proxy was cut off: {command}, {self.sent}")


def played(exchange: Exchange) -> Proxy:
    """The proxy after the whole exchange, with a stream that allows what it announces."""
    one = Proxy(exchange, Stream(StreamSettings(allow_mode_override=exchange.allow_override)))
    one.run()
    return one


# An override that is declined without a word may show bodies that were not asked for.
KEPT = EXCHANGES.filter(lambda one: one.obeys_override or not one.allow_override)


@settings(max_examples=200, deadline=None)
@given(KEPT)
def test_every_message_is_answered_in_order_and_in_kind(exchange: Exchange) -> None:
    one = played(exchange)
    for side in ("request", "response"):
        sent = [part for part, _, _ in one.sent if part.startswith(side)]
        parts = [str(answer.WhichOneof("response")) for answer in one.answers]
        assert [part for part in parts if part.startswith(side)] == sent
    assert not one.stream.holding
    assert one.stream.held_bytes == 0
    assert one.answered == 1


@settings(max_examples=200, deadline=None)
@given(KEPT)
def test_full_duplex_chunks_come_back_as_they_were_sent(exchange: Exchange) -> None:
    one = played(exchange)
    for side, mode in (
        ("request", exchange.request_mode),
        ("response", exchange.response_mode),
    ):
        sent = [(data, end) for part, data, end in one.sent if part == f"{side}_body"]
        back = [
            proxy.Answer.read(answer.SerializeToString())
            for answer in one.answers
            if answer.WhichOneof("response") == f"{side}_body"
        ]
        if mode in proxy.DUPLEX:
            assert [(answer.chunk, answer.end) for answer in back] == sent
        else:
            assert all(answer.chunk is None and answer.replaced is None for answer in back)


@settings(max_examples=200, deadline=None)
@given(KEPT)
def test_one_question_with_the_body_where_it_can_be_known(exchange: Exchange) -> None:
    one = played(exchange)
    (request,) = one.asked
    mode = exchange.request_mode
    may_override = (
        exchange.allow_override
        and not (exchange.early and mode is BodyMode.STREAMED)
        and mode not in proxy.DUPLEX
        and exchange.response_mode not in proxy.DUPLEX
    )
    shown_whole = mode in (BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED) or (
        mode is BodyMode.STREAMED and exchange.early
    )
    if exchange.chunks is None and not exchange.trailers:
        expected: bytes | None = b""
    elif shown_whole:
        expected = exchange.body
    elif mode is BodyMode.BUFFERED_PARTIAL:
        ends = not exchange.trailers and len(exchange.body) <= exchange.cut_at
        expected = exchange.body if ends or exchange.chunks is None else None
    elif may_override and mode in (BodyMode.NONE, BodyMode.STREAMED) and not exchange.trailers:
        expected = exchange.body
    else:
        expected = None
    assert request.body == expected


@settings(max_examples=200, deadline=None)
@given(KEPT)
def test_a_pick_is_told_once_and_as_early_as_the_router_needs_it(exchange: Exchange) -> None:
    one = played(exchange)
    told = [
        answer
        for answer in (proxy.Answer.read(sent.SerializeToString()) for sent in one.answers)
        if answer.picked is not None
    ]
    if exchange.shell != "pick":
        assert not told
        return
    (answer,) = told
    assert answer.picked == ENDPOINT
    if answer.part != "request_trailers":
        assert answer.destination == ENDPOINT


@settings(max_examples=200, deadline=None)
@given(KEPT.filter(lambda one: one.watch and one.shell == "pick"))
def test_a_watched_answer_is_seen_as_far_as_it_is_shown(exchange: Exchange) -> None:
    one = played(exchange)
    seen = b"".join(piece.data for piece in one.watched)
    assert seen == b"".join(data for part, data, _ in one.sent if part == "response_body")
    assert not any(piece.last for piece in one.watched[:-1])
    may_override = (
        exchange.allow_override
        and not (exchange.early and exchange.request_mode is BodyMode.STREAMED)
        and exchange.request_mode not in proxy.DUPLEX
        and exchange.response_mode not in proxy.DUPLEX
    )
    if may_override and exchange.answer_chunks is not None:
        assert exchange.answer_body.startswith(seen)
        fits = exchange.event_stream or len(exchange.answer_body) <= exchange.cut_at
        assert (seen == exchange.answer_body) == fits


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        replace,
        EXCHANGES,
        allow_override=st.just(True),
        obeys_override=st.just(False),
        request_mode=st.sampled_from([BodyMode.NONE, BodyMode.STREAMED]),
        response_mode=st.just(BodyMode.NONE),
    )
)
def test_a_declined_request_override_costs_nothing_but_the_knowledge(exchange: Exchange) -> None:
    one = played(exchange)
    assert not one.stream.holding
    if one.asked and one.asked[0].body:
        assert one.asked[0].body == exchange.body
