"""Any messages in any order over real gRPC, several streams at a time: what a proxy gets for them.

The answers, and how a stream ends, are those of the state machine without I/O (tests/stream says
what those must be): the shell adds none, loses none and survives everything.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    rule,
    run_state_machine_as_test,
)

from extproc.config import Limits, Proxy
from extproc.serve import App
from extproc.serve.app import _stream_settings
from extproc.stream import Ask, BodyMode, Finish, Send, Stream, parse_request
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.serve.proxy import CHAT, DESTINATION, METHOD, Exchange, chat, config, sample, serving
from tests.stream import proxy
from tests.stream.test_any_sequence import CHUNK, VALUES

MIB = 1024 * 1024
SETTINGS = config(
    proxy=Proxy(mode_override=True),
    limits=Limits(
        pick_timeout_ms=20_000, max_body_bytes=2_000, max_header_bytes=1_000, max_streams=3
    ),
)
SIDES = st.sampled_from(["request", "response"])
Result = TypeVar("Result")

HEADERS = st.one_of(
    VALUES,
    VALUES.map(lambda values: {**values, ":method": "POST", ":path": CHAT}),
    st.integers(0, 200_000).map(lambda size: {":path": CHAT, "x-huge": "x" * size}),
    st.integers(0, 2_000).map(lambda count: {f"x-{number}": "" for number in range(count)}),
)
DATA = st.one_of(
    CHUNK,
    st.sampled_from(
        [chat("a harbour " * 40), chat("a")[:-1], b"[" * 1_500, b"{}", b'{"model": 1}']
    ),
    st.integers(0, 300_000).map(bytes),
)


def _hinted(message: ProcessingRequest, hint: object) -> ProcessingRequest:
    metadata = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
    metadata.update({f"{DESTINATION}-subset": hint})
    return message


PARTS = st.one_of(
    st.builds(proxy.headers, SIDES, HEADERS, st.booleans()),
    st.builds(proxy.body, SIDES, DATA, st.booleans()),
    st.builds(proxy.trailers, SIDES),
)
HINTS = st.none() | st.text(max_size=20) | st.lists(st.sampled_from(["10.0.0.1", "x", ""]))
MESSAGES = st.one_of(
    PARTS,
    st.builds(_hinted, PARTS, HINTS),
    st.builds(
        proxy.announce, PARTS, st.sampled_from(BodyMode), st.sampled_from(BodyMode), st.booleans()
    ),
).map(ProcessingRequest.SerializeToString)
TOLD = PARTS.map(
    lambda part: (
        ProcessingRequest(observability_mode=True).SerializeToString() + part.SerializeToString()
    )
)
BYTES = st.one_of(
    MESSAGES,
    MESSAGES,
    TOLD,
    # Every field twice, and parts of two kinds in one message.
    st.builds(bytes.__add__, MESSAGES, MESSAGES),
    st.builds(lambda whole, size: whole[:size], MESSAGES, st.integers(0, 40)),
    st.binary(max_size=40),
)
OPENINGS = st.builds(
    lambda part, *modes: proxy.announce(part, *modes).SerializeToString(),
    PARTS,
    st.sampled_from(BodyMode),
    st.sampled_from(BodyMode),
    st.booleans(),
)
# Deferred, because hypothesis shows a rule's strategies in full.
BEGINNINGS = st.deferred(lambda: st.one_of(OPENINGS, OPENINGS, BYTES))
SEVERAL = st.deferred(lambda: st.lists(BYTES, min_size=1, max_size=6))


@dataclass(slots=True)
class Twin:
    """What the state machine says to the same messages; the proxy places what is asked."""

    stream: Stream
    parts: list[str] = field(default_factory=list)
    finish: Finish | None = None

    def receive(self, data: bytes) -> None:
        for command in self.stream.receive(parse_request(data)):
            match command:
                case Send():
                    self._sent(command)
                case Ask():
                    for answer in self.stream.pass_on():
                        assert isinstance(answer, Send)
                        self._sent(answer)
                case Finish():
                    self.finish = command

    def _sent(self, answer: Send) -> None:
        part = ProcessingResponse.FromString(answer.message).WhichOneof("response")
        assert part is not None
        self.parts.append(part)


class Talk:
    """A proxy's end of one stream, that reads whatever comes, and its twin."""

    def __init__(self, channel: grpc.aio.Channel, stream: Stream) -> None:
        self.twin = Twin(stream)
        self.answers: list[ProcessingResponse] = []
        self.call = channel.stream_stream(
            METHOD, response_deserializer=ProcessingResponse.FromString
        )()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for answer in self.call:
                self.answers.append(answer)

    async def say(self, data: bytes) -> None:
        if not self.twin.finish:
            self.twin.receive(data)
            await self.call.write(data)

    async def hang_up(self) -> None:
        """The proxy has said all: what Homing says until the end."""
        # Homing may have ended the stream already; or not, where it has refused the request.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.done_writing()
        await self._reading
        code = await self.call.code()
        parts = [answer.WhichOneof("response") for answer in self.answers]
        if parts and parts[-1] == "immediate_response":
            assert parts[:-1] == self.twin.parts[: len(parts) - 1]
            assert code is grpc.StatusCode.OK
        else:
            assert parts == self.twin.parts
            aborted = self.twin.finish is not None and self.twin.finish.abort
            assert code is (grpc.StatusCode.INTERNAL if aborted else grpc.StatusCode.OK)

    async def go_away(self) -> None:
        """The client, or the proxy, is gone."""
        self.call.cancel()
        await self._reading


class Here:
    """A Homing, a channel to it, and the loop in which both run while a step waits."""

    def __init__(self) -> None:
        self.alarms = Alarms()
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_exception_handler(self.alarms.heard)
        self._serving = serving(SETTINGS)
        self.app, self.channel = self.run(self._serving.__aenter__())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """All that is waited for is waited for so long at most: a hang fails."""

        async def bounded() -> Result:
            async with asyncio.timeout(20):
                return await work

        return self._runner.run(bounded())

    def close(self) -> None:
        self.run(self._serving.__aexit__(None, None, None))
        self._runner.close()


class Alarms(logging.Handler):
    """What no message may cause: an error in the log, or an exception that reached the loop."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.raised: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.raised.append(self.format(record))

    def heard(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.raised.append(repr(context))


class Served(RuleBasedStateMachine):
    """Streams to one Homing, opened, used and left in any order."""

    talks = Bundle("talks")

    def __init__(self, here: Here) -> None:
        super().__init__()
        self._here = here
        self._run = here.run
        self._open: list[Talk] = []

    @rule(target=talks, first=BEGINNINGS)
    def opens(self, first: bytes) -> Any:
        if len(self._open) > 5:
            return multiple()

        async def open_() -> Talk:
            talk = Talk(self._here.channel, Stream(_stream_settings(SETTINGS)))
            await talk.say(first)
            return talk

        talk = self._run(open_())
        self._open.append(talk)
        return talk

    @rule(talk=talks, data=SEVERAL)
    def says(self, talk: Talk, data: list[bytes]) -> None:
        async def say() -> None:
            for one in data:
                await talk.say(one)

        self._run(say())

    @rule(talk=consumes(talks))
    def hangs_up(self, talk: Talk) -> None:
        self._open.remove(talk)
        self._run(talk.hang_up())

    @rule(talk=consumes(talks))
    def goes_away(self, talk: Talk) -> None:
        self._open.remove(talk)
        self._run(talk.go_away())

    def teardown(self) -> None:
        try:
            for talk in self._open:
                self._run(talk.hang_up())
        finally:  # or the next machine would find what this one left
            for talk in self._open:
                self._run(talk.go_away())
        self._run(until_idle(self._here.app))
        assert sample_total(self._here.app, "homing_internal_errors_total") == 0
        assert self._here.alarms.raised == []


@pytest.fixture
def here() -> Iterator[Here]:
    one = Here()
    logging.getLogger().addHandler(one.alarms)
    yield one
    one.close()
    logging.getLogger().removeHandler(one.alarms)
    assert one.alarms.raised == []


def test_any_messages_are_answered_by_the_protocol_and_leave_nothing_behind(here: Here) -> None:
    run_state_machine_as_test(
        lambda: Served(here),
        settings=settings(
            max_examples=100,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def sample_total(app: App, name: str) -> float:
    families = app.metrics.registry.collect()
    return sum(s.value for family in families for s in family.samples if s.name == name)


async def until_idle(app: App) -> None:
    """No stream, no byte and no request is left."""
    processor = app.processor
    await until(lambda: not (processor.open_streams or processor.held_bytes))
    await until(lambda: not any(pool.load.in_flight for pool in app.pools))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_a_message_that_grpc_refuses_ends_its_stream_and_leaves_nothing(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(SETTINGS) as (app, channel):
        talk = Talk(channel, Stream(_stream_settings(SETTINGS)))
        opening = proxy.headers("request", {":path": CHAT})
        proxy.announce(opening, BodyMode[mode], BodyMode.NONE)
        await talk.say(opening.SerializeToString())
        await talk.say(proxy.body("request", bytes(5 * MIB), end=True).SerializeToString())
        assert await talk.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until_idle(app)
        assert sample(app, "homing_internal_errors_total", where="encode") == 0
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_proxy_that_has_said_all_still_gets_what_the_deadline_lets_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(hold_timeout_ms=50, pick_timeout_ms=20_000)
    async with serving(config(limits=limits)) as (app, channel):
        exchange = Exchange(channel, "FULL_DUPLEX_STREAMED")
        await exchange.send_headers()
        for _ in range(64):
            await exchange.chunk(bytes(64 * 1024))
        # Not read yet: more than gRPC takes ahead, so that most of it waits in Homing.
        await until(lambda: sample(app, "homing_released_total", reason="hold_timeout") == 1)
        await exchange.call.done_writing()
        size = 0
        async for answer in exchange.call:
            size += len(answer.request_body.response.body_mutation.streamed_response.body)
        assert size == 4 * MIB
        assert await exchange.call.code() is grpc.StatusCode.OK
        await until_idle(app)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
