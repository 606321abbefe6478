"""Reads the event streams of all instances: ZeroMQ sockets, and the work in small slices.

Messages are received into a bounded queue for each instance. One task takes them in, instance by
instance, in slices that are short beside a pick, and lets requests in between.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Final, TypeAlias

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from extproc.engines.events.address import Address
from extproc.engines.events.stream import Request, Steps, Stream
from extproc.engines.events.wire import END, Message, read_frames
from extproc.errors import PeerViolation
from extproc.index import Fact

Append: TypeAlias = Callable[[Sequence[Fact]], None]

SLICE_S: Final = 0.0005
"""Longest that the event loop is kept before others are let in, but for one step."""

MOST_QUEUED: Final = 16
"""Messages that are received and not taken in yet: receiving one takes 30 µs, and all that are
there would be received in one go. The rest waits in ZeroMQ, whose own bound lets go of what is
beyond it: a gap, which is asked for."""

REPLAY_PATIENCE_S: Final = 2.0
"""Longest silence of an engine that was asked for its history."""

MAX_MESSAGE_BYTES: Final = 64 << 20

_HEARTBEAT_MS: Final = 1000
_TIMEOUT_MS: Final = 3000
"""A peer that is silent for so long is gone, also where nothing says so (a pulled cable)."""

_REPLAY_QUEUE: Final = 20_000
"""More than the 10,000 messages that engines keep."""


class Subscription:
    """One instance's: its sockets, what is received and not taken in, and where facts go."""

    def __init__(self, address: Address, stream: Stream, append: Append) -> None:
        self.address = address
        self.stream = stream
        self.append = append
        self.work: deque[Callable[[], Steps]] = deque()
        """What is to be done next, in order."""
        self.steps: Steps = iter(())
        """What is being done."""
        self.due = False
        """Whether it is in the round of those that have work."""
        self.fault: BaseException | None = None
        """What ended it, other than `unsubscribe`: a fault of ours."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.replay: asyncio.Task[None] | None = None


class EventReader:
    """All subscriptions of a process. Made, used and closed in one event loop."""

    def __init__(self) -> None:
        self._context: zmq.asyncio.Context | None = None
        """Made when there is something to follow: it has threads of its own."""
        self._subscriptions: set[Subscription] = set()
        self._due: deque[Subscription] = deque()
        self._queued = 0
        self._room = asyncio.Event()
        self._room.set()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def subscribe(self, address: Address, stream: Stream, append: Append) -> Subscription:
        """Follow an instance's events from now on; `append` is given the facts that follow."""
        subscription = Subscription(address, stream, append)
        self._subscriptions.add(subscription)
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())
        self._start(subscription, self._follow(subscription))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """No more of it; what was received and not taken in is let go."""
        self._subscriptions.discard(subscription)
        self._done(len(subscription.work))
        subscription.work.clear()
        subscription.steps = iter(())
        for task in subscription.tasks:
            task.cancel()

    def do(self, subscription: Subscription, work: Callable[[], Steps]) -> None:
        """Have something done to the stream in its turn."""
        if subscription not in self._subscriptions:
            return
        subscription.work.append(work)
        self._queued += 1
        if self._queued >= MOST_QUEUED:
            self._room.clear()
        if not subscription.due:
            subscription.due = True
            self._due.append(subscription)
            self._wake.set()

    async def close(self) -> None:
        """End all subscriptions."""
        tasks = [task for one in self._subscriptions for task in one.tasks]
        if self._worker is not None:
            tasks.append(self._worker)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._subscriptions.clear()
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    # Taking in

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due:
                until = perf_counter() + SLICE_S
                while self._due:
                    subscription = self._due.popleft()
                    try:
                        subscription.due = self._step(subscription)
                    except Exception as fault:  # one instance's, and the others go on
                        subscription.due = False
                        self._failed(subscription, fault)
                    if subscription.due:
                        self._due.append(subscription)
                    if perf_counter() >= until:
                        break
                await asyncio.sleep(0)

    def _step(self, subscription: Subscription) -> bool:
        """One step of an instance's; whether there is more to do."""
        facts = next(subscription.steps, None)
        if facts:
            subscription.append(facts)
        stream = subscription.stream
        if stream.wanted is not None:
            request, stream.wanted = stream.wanted, None
            if subscription.replay is not None:
                subscription.replay.cancel()
            subscription.replay = self._start(subscription, self._replay(subscription, request))
        if facts is not None:
            return True
        if not subscription.work:
            return False
        subscription.steps = subscription.work.popleft()()
        self._done(1)
        return True

    def _done(self, works: int) -> None:
        self._queued -= works
        if self._queued < MOST_QUEUED:
            self._room.set()

    def _start(
        self, subscription: Subscription, work: Coroutine[None, None, None]
    ) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        subscription.tasks.add(task)
        task.add_done_callback(partial(self._ended, subscription))
        return task

    def _ended(self, subscription: Subscription, task: asyncio.Task[None]) -> None:
        subscription.tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            self._failed(subscription, fault)

    def _failed(self, subscription: Subscription, fault: BaseException) -> None:
        subscription.fault = fault
        self.unsubscribe(subscription)
        for _ in subscription.stream.disconnected():
            pass

    # Sockets

    async def _follow(self, subscription: Subscription) -> None:
        """Listen for ever, with a new socket for each connection: what an old one still has in
        store would mix with what another process says."""
        while True:
            socket = self._socket(zmq.SUB)
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            monitor = socket.get_monitor_socket(events)
            receiving = asyncio.ensure_future(self._receive(subscription, socket))
            try:
                socket.subscribe(subscription.address.topic)
                socket.connect(subscription.address.events)
                while (await recv_monitor_message(monitor))["event"] != zmq.EVENT_DISCONNECTED:
                    self.do(subscription, subscription.stream.connected)
            finally:
                receiving.cancel()
                socket.disable_monitor()
                monitor.close(linger=0)
                socket.close(linger=0)
            self.do(subscription, subscription.stream.disconnected)

    async def _receive(self, subscription: Subscription, socket: zmq.asyncio.Socket) -> None:
        stream = subscription.stream
        while True:
            await self._room.wait()
            message = _read(await socket.recv_multipart(), stream)
            if message is not None:
                self.do(subscription, partial(stream.receive, message))

    async def _replay(self, subscription: Subscription, request: Request) -> None:
        """Ask, and hand over what comes."""
        stream = subscription.stream
        assert subscription.address.replay is not None
        socket = self._socket(zmq.DEALER)
        socket.rcvhwm = _REPLAY_QUEUE
        answered = False
        try:
            socket.connect(subscription.address.replay)
            await socket.send_multipart([b"", request.start.to_bytes(8, "big")])
            with suppress(TimeoutError):
                while not answered:
                    await self._room.wait()
                    frames = await asyncio.wait_for(socket.recv_multipart(), REPLAY_PATIENCE_S)
                    message = _read(frames, stream)
                    if message is not None and message.seq == END and not message.payload:
                        answered = True
                    elif message is not None:
                        self.do(subscription, partial(stream.replayed, request, message))
        finally:
            socket.close(linger=0)
        self.do(subscription, partial(stream.replay_ended, request, answered))

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        if self._context is None:
            self._context = zmq.asyncio.Context()
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.ipv6 = True
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_timeout = _TIMEOUT_MS
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2000
        return socket


def _read(frames: Sequence[bytes], stream: Stream) -> Message | None:
    try:
        return read_frames(frames)
    except PeerViolation:
        stream.counts["bad_frames"] += 1
        return None
