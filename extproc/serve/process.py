"""One ext_proc stream: receive, run the commands, send. No protocol branch here: see `stream`."""

import asyncio
import logging
from collections.abc import Sequence
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
        self.open_streams = 0

    async def process(self, _: object, context: Context) -> None:
        """Serve one HTTP request's stream to its end.

        The end shows as EOF, as CancelledError or as GeneratorExit; none of them is an error.
        """
        self.open_streams += 1
        session = _Session(self._picker, Stream(self._settings), context)
        hold = asyncio.get_running_loop().call_later(self._hold_timeout_s, session.expire)
        try:
            while session.cut is None:
                message = await context.read()
                if message is grpc.aio.EOF:
                    break
                await session.receive(message)
            if session.cut is not None:
                self._metrics.streams_cut.labels(session.cut.reason).inc()
                self._once.warning(session.cut.reason, "stream ended: %s", session.cut.reason)
                if session.cut.abort:
                    await context.abort(grpc.StatusCode.INTERNAL, session.cut.reason)
        finally:
            hold.cancel()
            session.close()
            self.open_streams -= 1


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

    async def receive(self, message: ProcessingRequest) -> None:
        """Do what the message asks for, after what the deadline may still be writing."""
        if self._late is not None:
            await self._late
        self._busy = True
        await self._run(self._stream.receive(message))
        self._busy = False

    def expire(self) -> None:
        """The body is held for too long: let it go without a pick.

        Nothing to do while a message is being answered: a pick has a time limit of its own.
        """
        if not self._busy and (commands := self._stream.deadline()):
            self._late = asyncio.ensure_future(self._run(commands))

    def close(self) -> None:
        """The stream is over."""
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
        if isinstance(outcome, Refusal):
            return self._stream.refused(outcome)
        pick, self._placed = outcome
        return self._stream.picked(pick)
