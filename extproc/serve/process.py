"""One ext_proc stream: receive, run the commands, send. No protocol branch here: see `stream`."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum, auto
from time import monotonic
from typing import Protocol

import grpc

from extproc.config import Limits
from extproc.serve.picker import Picker
from extproc.serve.placed import Placed
from extproc.stream import (
    AnswerBody,
    Answered,
    Ask,
    Command,
    Finish,
    Refusal,
    Reply,
    Request,
    Send,
    Stream,
    StreamSettings,
)
from extproc.stream.headers import PATIENCE
from extproc.telemetry import LogOnce, Metrics
from proto_gen.ext_proc_pb2 import ProcessingRequest

logger = logging.getLogger("homing.serve")

MARGIN_S = 0.5
"""For what else a pick takes, of the time that the proxy waits."""


class Context(Protocol):
    """What is used of `grpc.aio.ServicerContext`."""

    async def read(self) -> ProcessingRequest:
        """The next message, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send one message, in order."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the proxy sent with the stream's opening."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the stream with an error."""


class Leave(IntEnum):
    """When this side may end a stream, cleanly, before the proxy does."""

    NEVER = auto()
    SETTLED = auto()
    """Once nothing of ours is wanted any more."""
    SAFE = auto()
    """Once nothing is lost by it: what is held goes on now, without a pick."""


class Processor:
    """The method `Process` of `envoy.service.ext_proc.v3.ExternalProcessor`."""

    def __init__(
        self, picker: Picker, settings: StreamSettings, limits: Limits, metrics: Metrics
    ) -> None:
        self._picker = picker
        self._settings = settings
        self._limits = limits
        self._metrics = metrics
        self._held_bytes = 0
        self._once = LogOnce(logger)
        self._open: set[_Session] = set()
        self._leave = Leave.NEVER
        self.idle = asyncio.Event()
        """Set while no stream is open."""
        self.idle.set()

    @property
    def open_streams(self) -> int:
        """Streams that have begun and not ended."""
        return len(self._open)

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that all streams keep from the engines now."""
        return self._held_bytes

    def states(self) -> Counter[str]:
        """How many streams are how far."""
        return Counter(session.state for session in self._open)

    def beyond(self, request: Request) -> str | None:
        """The limit that the request is beyond, as a reason to route it by load; None for none."""
        if len(self._open) > self._limits.max_streams:
            return "max_streams"
        size = sum(len(name) + len(value) for name, value in request.headers.items())
        return "max_header_bytes" if size > self._limits.max_header_bytes else None

    def held(self, more: int) -> None:
        """A stream holds so many bytes more. Above the bound the largest are let go."""
        self._held_bytes += more
        if more > 0 and self._held_bytes > self._limits.max_held_bytes:
            largest = max(self._open, key=lambda session: session.held_bytes)
            largest.expire("max_held_bytes")

    def leave(self, when: Leave) -> None:
        """From now on streams are ended here, those that are open and those that still begin."""
        self._leave = when
        for session in tuple(self._open):
            session.leave(when)

    async def process(self, _: object, context: Context) -> None:
        """Serve one HTTP request's stream to its end.

        The end shows as EOF, as CancelledError or as GeneratorExit; none of them is an error.
        """
        session = _Session(self, Stream(self._settings), context, self._picker, self._metrics)
        self._open.add(session)
        self.idle.clear()
        session.leave(self._leave)
        hold = asyncio.get_running_loop().call_later(
            self._limits.hold_timeout_ms / 1000, session.expire, "hold_timeout"
        )
        try:
            while session.cut is None and not session.left and await session.receive():
                pass
            if session.cut is not None:
                self._metrics.streams_cut.labels(session.cut.reason).inc()
                self._once.warning(session.cut.reason, "stream ended: %s", session.cut.reason)
                if session.cut.abort:
                    await context.abort(grpc.StatusCode.INTERNAL, session.cut.reason)
        except asyncio.CancelledError:
            if not session.left:
                raise
            session.task.uncancel()
        finally:
            if session.left:
                self._metrics.streams_cut.labels("drain").inc()
            hold.cancel()
            session.close()
            self._open.discard(session)
            if not self._open:
                self.idle.set()


class _Session:
    """A stream, the shell around it, and what its request opened."""

    def __init__(
        self,
        processor: Processor,
        stream: Stream,
        context: Context,
        picker: Picker,
        metrics: Metrics,
    ) -> None:
        self.cut: Finish | None = None
        self._processor = processor
        self._stream = stream
        self._picker = picker
        self._context = context
        self._metrics = metrics
        self.held_bytes = 0
        """Of the request's body, as the processor has counted them."""
        self._held_since: float | None = None
        self._placed: Placed | None = None
        self._busy = False
        self._late: asyncio.Task[None] | None = None
        self._leave = Leave.NEVER
        self.left = False
        """Whether this side has ended the stream, with nothing lost."""
        self.task = _this_task()
        """The one that serves the stream."""

    async def receive(self) -> bool:
        """Read a message and do what it asks for; False where none comes any more.

        Not before what the deadline may still be writing is written: a proxy that has said all
        may still read, and gRPC cannot end a stream while a message is on its way.
        """
        message = await self._context.read()
        if self._late is not None:
            await self._late
        if message is grpc.aio.EOF:
            return False
        commands = self._stream.receive(message)
        del message  # it has the body a second time, and a pick may take long
        self._busy = bool(commands)
        self._note_held()
        await self._run(commands)
        self._busy = False
        self.leave(self._leave)
        return True

    @property
    def state(self) -> str:
        """How far the stream is."""
        return self._stream.state

    def expire(self, reason: str) -> None:
        """The body is held for too long, or is too much: let it go without a pick.

        Nothing to do while a message is being answered: a pick has a time limit of its own.
        """
        if not self._busy and (commands := self._stream.deadline()):
            self._metrics.released.labels(reason).inc()
            self._note_held()
            self._late = asyncio.ensure_future(self._run(commands))
            self._late.add_done_callback(lambda _: self.leave(self._leave))

    def _note_held(self) -> None:
        """Tell the processor what is held, and the histogram for how long it was."""
        stream = self._stream
        if stream.holding:
            if self._held_since is None:
                self._held_since = monotonic()
        elif self._held_since is not None:
            self._metrics.hold_seconds.observe(monotonic() - self._held_since)
            self._held_since = None
        if more := stream.held_bytes - self.held_bytes:
            self.held_bytes = stream.held_bytes
            self._processor.held(more)

    def leave(self, when: Leave) -> None:
        """End the stream as soon as it may be; looked at again after every message."""
        self._leave = when
        if when is Leave.SAFE:
            self.expire("drain")
        writing = self._busy or (self._late is not None and not self._late.done())
        if writing or self.left or self.cut is not None or not self._may_leave():
            return
        self.left = True
        if self.task is not asyncio.current_task():
            self.task.cancel()  # it waits for the next message

    def _may_leave(self) -> bool:
        match self._leave:
            case Leave.NEVER:
                return False
            case Leave.SETTLED:
                return self._stream.settled
            case Leave.SAFE:
                return self._stream.can_leave

    def close(self) -> None:
        """The stream is over."""
        self._leave = Leave.NEVER
        if self._late is not None:
            self._late.cancel()
        if self._placed is not None:
            self._placed.ended()
        self._processor.held(-self.held_bytes)

    async def _run(self, commands: Sequence[Command]) -> None:
        left = iter(commands)
        try:
            for command in left:
                match command:
                    case Send():
                        await self._context.write(command.message)
                    case Ask():
                        await self._run(await self._ask(command.request))
                    case _:
                        self._note(command)
        finally:
            # A proxy may end the stream at the last answer that it waits for, while that is still
            # being written. What it has told is known all the same.
            for command in left:
                self._note(command)

    def _note(self, command: Command) -> None:
        """What is not said to the proxy."""
        match command:
            case Answered():
                if self._placed is not None:
                    self._placed.answered(command)
            case AnswerBody():
                if self._placed is not None:
                    self._placed.answer_body(command.data)
            case Finish():
                self.cut = command

    async def _ask(self, request: Request) -> Sequence[Command]:
        beyond = self._processor.beyond(request)
        outcome = await self._picker.pick(request, beyond, self._may_wait)
        if outcome is None:
            commands = self._stream.pass_on()
        elif isinstance(outcome, Refusal):
            commands = self._stream.refused(outcome)
        elif isinstance(outcome, Reply):
            commands = self._stream.replied(outcome)
        else:
            pick, self._placed = outcome
            commands = self._stream.picked(pick)
        self._note_held()
        return commands

    async def _may_wait(self, seconds: float) -> bool:
        """Have the proxy wait for a pick; False where it has not said that it can."""
        patience_s = _patience_s(self._context)
        if seconds + MARGIN_S > patience_s:
            return False
        await self._run(self._stream.more_time(patience_s))
        return True


def _patience_s(context: Context) -> float:
    """How far the proxy lets a message's time-out be stretched, as its filter announces."""
    for name, value in context.invocation_metadata():
        if name == PATIENCE:
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 0.0


def _this_task() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task
