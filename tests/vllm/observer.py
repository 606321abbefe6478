"""What engines say of their caches, read by a subscriber that shares no code with Homing's."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from extproc.demo.engine import EngineSettings
from extproc.demo.stack import HOST

HISTORY_S = 20.0
"""Longest wait for what an engine has published before."""


@dataclass(slots=True)
class Heard:
    """One engine's events so far.

    messages: topic, number and batch of each. events: of all of them, decoded.
    copies: of each block that it holds, by its hash.
    stored, removed: blocks, ever. restarts: how often its numbers began anew.
    """

    messages: list[list[bytes]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    copies: Counter[int | bytes] = field(default_factory=Counter)
    stored: int = 0
    removed: int = 0
    restarts: int = 0
    _last: int = -1

    def receive(self, frames: list[bytes]) -> None:
        """One message: topic, number, batch. One that was in the history is let go."""
        _, number, payload = frames
        seq = int.from_bytes(number, "big")
        if seq <= self._last and frames in self.messages:
            return
        self.messages.append(frames)
        if seq <= self._last:
            self.restarts += 1
            self.copies.clear()
        elif self._last >= 0:
            assert seq == self._last + 1, f"message {seq} came after {self._last}"
        self._last = seq
        _, events, *_ = msgspec.msgpack.decode(payload)
        for event in events:
            self._apply(event)
        self.events += events

    def _apply(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "BlockStored":
                self.copies.update(event["block_hashes"])
                self.stored += len(event["block_hashes"])
            case "BlockRemoved":
                self.copies.subtract(event["block_hashes"])
                self.removed += len(event["block_hashes"])
            case "AllBlocksCleared":
                self.copies.clear()
            case unknown:
                raise AssertionError(f"an event of type {unknown}")


class Observer:
    """Subscribers to all engines. heard: of each, by its name, since it was started."""

    def __init__(self, names: Iterable[str]) -> None:
        self.heard = {name: Heard() for name in names}
        self._news = asyncio.Event()
        self._fault: Exception | None = None

    async def until(self, true: Callable[[], bool], patience_s: float) -> bool:
        """Wait until it is so; whether it is, when patience ends. Raises what went wrong here."""
        try:
            async with asyncio.timeout(patience_s):
                while not true():
                    if self._fault:
                        raise self._fault
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return true()
        return True

    async def _listen(self, heard: Heard, socket: zmq.asyncio.Socket) -> None:
        while self._fault is None:
            try:
                heard.receive(await socket.recv_multipart())
            except Exception as fault:
                self._fault = fault
            self._news.set()


async def history(context: zmq.asyncio.Context, engine: EngineSettings) -> list[list[bytes]]:
    """The answer of an engine that was asked for all of its messages again, frame by frame.

    The last three frames of each are topic, number and batch; the last message has no batch.
    """
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(f"tcp://{HOST}:{engine.kv_events_replay_port}")
        await socket.send_multipart([b"", bytes(8)])
        messages: list[list[bytes]] = []
        async with asyncio.timeout(HISTORY_S):
            while not messages or messages[-1][-1]:
                messages.append(await socket.recv_multipart())
    finally:
        socket.close(linger=0)
    return messages


@asynccontextmanager
async def observing(engines: Mapping[str, EngineSettings]) -> AsyncIterator[Observer]:
    """Follow the events of engines, by name, while the block runs; from their start."""
    observer = Observer(engines)
    context = zmq.asyncio.Context()
    tasks = []
    try:
        for name, engine in engines.items():
            heard = observer.heard[name]
            socket = context.socket(zmq.SUB)
            socket.subscribe(b"")
            socket.connect(f"tcp://{HOST}:{engine.kv_events_port}")
            for frames in (await history(context, engine))[:-1]:
                heard.receive(frames[-3:])
            tasks.append(asyncio.create_task(observer._listen(heard, socket)))
        yield observer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context.destroy(linger=0)
