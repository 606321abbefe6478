"""What engines say of their caches, read by a subscriber that shares no code with Homing's."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.asyncio


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
        """One message: topic, number, batch."""
        self.messages.append(frames)
        _, number, payload = frames
        seq = int.from_bytes(number, "big")
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
    """Subscribers to all engines. heard: of each, by its name."""

    def __init__(self, names: Mapping[str, str]) -> None:
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


@asynccontextmanager
async def observing(addresses: Mapping[str, str]) -> AsyncIterator[Observer]:
    """Follow the events of engines, by name and ZeroMQ address, while the block runs."""
    observer = Observer(addresses)
    context = zmq.asyncio.Context()
    tasks = []
    for name, address in addresses.items():
        socket = context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(address)
        tasks.append(asyncio.create_task(observer._listen(observer.heard[name], socket)))
    try:
        yield observer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context.destroy(linger=0)
