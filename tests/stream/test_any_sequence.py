"""Any messages in any order: the stream never raises and always answers by the protocol."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from extproc.prompt import answer_renamer
from extproc.stream import (
    AnswerBody,
    Answered,
    Ask,
    BodyMode,
    Command,
    Finish,
    Pick,
    Refusal,
    Request,
    Send,
    Stream,
    StreamSettings,
    parse_request,
)
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import ProcessingRequest
from tests.stream import proxy

BOUND = 64
MAX_CHUNKS = 12
LARGEST = 90

CHUNK = st.one_of(st.binary(max_size=12), st.integers(0, LARGEST).map(lambda size: bytes(size)))
NAMES = (
    *(":method", ":path", ":status", "status", "upgrade", "connection", "content-type"),
    *(proxy.DESTINATION, "x-homing-turn", "X-Mixed"),
)
VALUES = st.dictionaries(
    st.sampled_from(NAMES),
    st.sampled_from(["", "POST", "CONNECT", "200", "500", "websocket", "Upgrade", "é", "/v1/x"]),
)
ENDPOINTS = st.lists(
    st.sampled_from(["10.0.0.1:8000", "[::1]:8000"]).map(Endpoint), max_size=2, unique=True
)


class AnySequence(RuleBasedStateMachine):
    """Messages as they come, against what a proxy may expect of the answers."""

    @initialize(
        request=st.sampled_from(BodyMode),
        response=st.sampled_from(BodyMode),
        early=st.booleans(),
        override=st.booleans(),
        announced=st.booleans(),
    )
    def open(
        self, request: BodyMode, response: BodyMode, early: bool, override: bool, announced: bool
    ) -> None:
        self.modes = {"request": request, "response": response}
        self.early = early and announced
        self.announced = announced
        self.settings = StreamSettings(
            fallback_request_mode=request,
            fallback_response_mode=response,
            max_body_bytes=BOUND,
            max_early_bytes=BOUND,
            max_chunks=MAX_CHUNKS,
            allow_mode_override=override,
        )
        self.stream = Stream(self.settings)
        self.shown: list[tuple[str, bytes, bool]] = []
        self.answers: list[proxy.Answer] = []
        self.asked: Request | None = None
        self.asks = 0
        self.open_ask = False
        self.rewritten: bytes | None = None
        self.ended = False

    # --- the proxy ---

    @rule(side=st.sampled_from(["request", "response"]), values=VALUES, end=st.booleans())
    def shows_headers(self, side: str, values: dict[str, str], end: bool) -> None:
        self._receive(proxy.headers(side, values, end), f"{side}_headers", b"", end)

    @rule(side=st.sampled_from(["request", "response"]), data=CHUNK, end=st.booleans())
    def shows_a_chunk(self, side: str, data: bytes, end: bool) -> None:
        self._receive(proxy.body(side, data, end), f"{side}_body", data, end)

    @rule(side=st.sampled_from(["request", "response"]))
    def shows_trailers(self, side: str) -> None:
        self._receive(proxy.trailers(side), f"{side}_trailers", b"", True)

    @rule(data=st.binary(max_size=20))
    def sends_anything(self, data: bytes) -> None:
        message = parse_request(data)
        if message.WhichOneof("request") is None and not message.observability_mode:
            commands = self.stream.receive(message)
            if not self.ended:
                assert [type(command) for command in commands] == [Finish]
            self._check(commands)

    @rule()
    def tells_without_waiting(self) -> None:
        message = proxy.headers("response", {":status": "200"})
        message.observability_mode = True
        commands = self.stream.receive(message)
        assert all(isinstance(command, Answered) for command in commands)

    # --- the shell ---

    @rule(endpoints=ENDPOINTS, watch=st.booleans(), body=st.none() | CHUNK, rewrites=st.booleans())
    def picks(
        self, endpoints: list[Endpoint], watch: bool, body: bytes | None, rewrites: bool
    ) -> None:
        # No chunk is long enough to name a model, so none is changed.
        rewrite = (lambda _: answer_renamer("application/json", "alias")) if rewrites else None
        pick = Pick(tuple(endpoints), body=body, watch_answer=watch, rewrite_answer=rewrite)
        before = len(self.answers)
        was_open = self.open_ask
        if was_open and endpoints and self.asked and self.asked.body:
            self.rewritten = body
        self._check(self.stream.picked(pick))
        new = self.answers[before:]
        if not was_open:
            assert not new
        elif endpoints:
            first, *rest = new
            assert first.picked == ",".join(endpoints)
            assert first.destination in (None, first.picked)
            if first.part == "request_headers":
                assert first.destination == first.picked
            assert all(answer.picked is None for answer in rest)

    @rule()
    def passes_on(self) -> None:
        commands = self.stream.pass_on()
        assert bool(commands) == self.open_ask
        self._check(commands)

    @rule()
    def runs_out_of_time(self) -> None:
        self._check(self.stream.deadline())
        assert not self.stream.holding

    @precondition(lambda self: self.open_ask)
    @rule(status=st.sampled_from([400, 429, 503]))
    def refuses(self, status: int) -> None:
        begun = any(part.startswith("response") for part, _, _ in self.shown)
        commands = self.stream.refused(Refusal(status, "code", "message", "reason", 1))
        self._check(commands)
        if not begun:
            assert self.answers[-1].part == "immediate_response"
            self.ended = True

    # --- what a proxy may expect ---

    def _receive(self, message: ProcessingRequest, part: str, data: bytes, end: bool) -> None:
        if not self.shown and self.announced:
            proxy.announce(message, self.modes["request"], self.modes["response"], self.early)
        commands = self.stream.receive(parse_request(message.SerializeToString()))
        if not self.ended:
            self.shown.append((part, data, end))
        self._check(commands)

    def _check(self, commands: list[Command]) -> None:
        if self.ended:
            assert commands == []
        for place, command in enumerate(commands):
            match command:
                case Send():
                    self.answers.append(proxy.Answer.read(command.message))
                case Ask(request):
                    self.asks += 1
                    self.asked = request
                    assert place == len(commands) - 1
                case Finish():
                    assert len(commands) == 1
                    assert command.abort == (self._duplex("request") or self._duplex("response"))
                    self.ended = True
                case Answered() | AnswerBody():
                    # The proxy's answer is not kept waiting by what the shell does with these.
                    assert isinstance(commands[0], Send)
        asked = bool(commands) and isinstance(commands[-1], Ask)
        self.open_ask = asked or (self.open_ask and self.stream.holding)

    @invariant()
    def asks_once(self) -> None:
        assert self.asks <= 1

    @invariant()
    def answers_each_message_in_order(self) -> None:
        for side in ("request", "response"):
            shown = [one for one in self.shown if one[0].startswith(side)]
            answers = [one for one in self.answers if one.part.startswith(side)]
            if side == "request" and self.rewritten is not None and self._duplex(side):
                continue
            assert len(answers) <= len(shown)
            for (part, data, end), answer in zip(shown, answers, strict=False):
                assert answer.part == part
                if part.endswith("_body") and self._duplex(side):
                    assert (answer.chunk, answer.end) == (data, end)
                else:
                    assert answer.chunk is None
            if not self.ended and not self.stream.holding:
                assert len(answers) == len(shown)

    @invariant()
    def sends_a_rewritten_body_whole(self) -> None:
        if self.rewritten is None or self.ended or self.asked is None:
            return
        bodies = [one for one in self.answers if one.part == "request_body"]
        if self._duplex("request"):
            assert b"".join(one.chunk or b"" for one in bodies) == self.rewritten
        else:
            replaced = [one.replaced for one in bodies if one.replaced is not None]
            assert b"".join(replaced) == self.rewritten

    @invariant()
    def asks_with_the_body_that_was_shown(self) -> None:
        if self.asked is not None and self.asked.body:
            shown = b"".join(data for part, data, _ in self.shown if part == "request_body")
            assert shown.startswith(self.asked.body)
            assert len(self.asked.body) <= BOUND

    @invariant()
    def holds_within_bounds(self) -> None:
        assert self.stream.held_bytes <= 2 * BOUND + LARGEST
        assert self.stream.held_bytes == 0 or self.stream.holding

    def _duplex(self, side: str) -> bool:
        return self.modes[side] in proxy.DUPLEX


AnySequence.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnySequence = AnySequence.TestCase
