"""One ext_proc stream: receive, run the commands, send. No protocol branch here: see `stream`."""

import asyncio
import logging
from collections.abc import Sequence
from enum import IntEnum, auto
from typing import Protocol

import grpc

from extproc.serve.picker import Picker
from extproc.serve.placed import Placed
from extproc.stream import (
    AnswerBody,
    Answered,
    Ask,
    Command,
    Finish,
    Refusal,
    Request,
    Send,
    Stream,
    StreamSettings,
)
from extproc.telemetry import LogOnce, Metrics
from proto_gen.ext_proc_pb2 import ProcessingRequest

logger = logging.getLogger("homing.serve")


class Context(Protocol):
    """What is used of `grpc.aio.ServicerContext`."""

    async def read(self) -> ProcessingRequest:
        """The next message, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send one message, in order."""

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
        self, picker: Picker, settings: StreamSettings, hold_timeout_s: float, metrics: Metrics
    ) -> None:
        self._picker = picker
        self._settings = settings
        self._hold_timeout_s = hold_timeout_s
        self._metrics = metrics
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

    def leave(self, when: Leave) -> None:
        """From now on streams are ended here, those that are open and those that still begin."""
        self._leave = when
        for session in tuple(self._open):
            session.leave(when)

    async def process(self, _: object, context: Context) -> None:
        """Serve one HTTP request's stream to its end.

        The end shows as EOF, as CancelledError or as GeneratorExit; none of them is an error.
        """
        session = _Session(self._picker, Stream(self._settings), context)
        self._open.add(session)
        self.idle.clear()
        session.leave(self._leave)
        hold = asyncio.get_running_loop().call_later(self._hold_timeout_s, session.expire)
        try:
            while session.cut is None and not session.left:
                message = await context.read()
                if message is grpc.aio.EOF:
                    break
                await session.receive(message)
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

    def __init__(self, picker: Picker, stream: Stream, context: Context) -> None:
        self.cut: Finish | None = None
        self._stream = stream
        self._picker = picker
        self._context = context
        self._placed: Placed | None = None
        self._busy = False
        self._late: asyncio.Task[None] | None = None
        self._leave = Leave.NEVER
        self.left = False
        """Whether this side has ended the stream, with nothing lost."""
        self.task = _this_task()
        """The one that serves the stream."""

    async def receive(self, message: ProcessingRequest) -> None:
        """Do what the message asks for, after what the deadline may still be writing."""
        if self._late is not None:
            await self._late
        self._busy = True
        await self._run(self._stream.receive(message))
        self._busy = False
        self.leave(self._leave)

    def expire(self) -> None:
        """The body is held for too long: let it go without a pick.

        Nothing to do while a message is being answered: a pick has a time limit of its own.
        """
        if not self._busy and (commands := self._stream.deadline()):
            self._late = asyncio.ensure_future(self._run(commands))
            self._late.add_done_callback(lambda _: self.leave(self._leave))

    def leave(self, when: Leave) -> None:
        """End the stream as soon as it may be; looked at again after every message."""
        self._leave = when
        if when is Leave.SAFE:
            self.expire()
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

    async def _run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    await self._context.write(command.message)
                case Ask():
                    await self._run(await self._ask(command.request))
                case Answered():
                    if self._placed is not None:
                        self._placed.answered(command)
                case AnswerBody():
                    pass
                case Finish():
                    self.cut = command

    async def _ask(self, request: Request) -> Sequence[Command]:
        outcome = await self._picker.pick(request)
        if outcome is None:
            return self._stream.pass_on()
        if isinstance(outcome, Refusal):
            return self._stream.refused(outcome)
        pick, self._placed = outcome
        return self._stream.picked(pick)


def _this_task() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task
