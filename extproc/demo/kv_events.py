"""The simulated engine's KV-cache events, published as vLLM 0.32's `ZmqEventPublisher` does.

A PUB socket says what the cache stored and removed, a batch for each turn of the event loop as
vLLM's has one for each step; a ROUTER socket gives the last batches again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from time import time
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from extproc.demo.prefix_cache import BlockHash, Event, Removed, Stored
from extproc.errors import ConfigError
from extproc.prompt import unpack_ids

TOPIC: Final = b"kv-events"

KEPT_BATCHES: Final = 10_000
"""For replays; vLLM's `buffer_steps`."""

_END: Final = (-1).to_bytes(8, "big", signed=True)


class KvEventPublisher:
    """Takes the cache's events in and publishes them; made by `publishing`."""

    def __init__(self, publisher: zmq.Socket[bytes], block_size: int) -> None:
        self._publisher = publisher
        self._block_size = block_size
        self._numbers = count()
        self._pending: list[dict[str, Any]] = []
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT_BATCHES)
        """Number and payload of the last batches."""

    def __call__(self, event: Event) -> None:
        """The cache did this. What comes in one turn of the event loop goes out together."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._publish)
        self._pending.append(self._encoded(event))

    def _publish(self) -> None:
        events, self._pending = self._pending, []
        number = next(self._numbers)
        payload = msgspec.msgpack.encode([time(), events, 0])
        self.kept.append((number, payload))
        self._publisher.send_multipart((TOPIC, number.to_bytes(8, "big"), payload), zmq.NOBLOCK)

    def _encoded(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Removed):
            return {
                "type": "BlockRemoved",
                "block_hashes": [_number(event.hash)],
                "medium": "GPU",
                "group_idx": 0,
            }
        if not isinstance(event, Stored):
            return {"type": "AllBlocksCleared"}
        extra_keys: list[list[str] | None] = [None] * len(event.hashes)
        if event.parent is None and event.salt:
            extra_keys[0] = [event.salt]
        return {
            "type": "BlockStored",
            "block_hashes": [_number(block_hash) for block_hash in event.hashes],
            "parent_block_hash": None if event.parent is None else _number(event.parent),
            "token_ids": unpack_ids(event.ids),
            "block_size": self._block_size,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": extra_keys,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }


@asynccontextmanager
async def publishing(
    host: str, port: int, replay_port: int | None, block_size: int
) -> AsyncIterator[KvEventPublisher]:
    """Publish on these ports as long as the block runs.

    Raises ConfigError where they cannot be bound.
    """
    context, replays = zmq.Context(), zmq.asyncio.Context()
    waiting: asyncio.Task[None] | None = None
    try:
        publisher = context.socket(zmq.PUB)
        _bind(publisher, host, port)
        events = KvEventPublisher(publisher, block_size)
        if replay_port is not None:
            router = replays.socket(zmq.ROUTER)
            _bind(router, host, replay_port)
            waiting = asyncio.ensure_future(_replay(router, events))
        yield events
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        replays.destroy(linger=0)
        context.destroy(linger=0)


async def _replay(router: zmq.asyncio.Socket, events: KvEventPublisher) -> None:
    while True:
        request = await router.recv_multipart()
        if len(request) != 3:
            continue
        client, _, start = request
        for number, payload in list(events.kept):
            if number >= int.from_bytes(start, "big"):
                message = (TOPIC, number.to_bytes(8, "big"), payload)
                await router.send_multipart((client, b"", *message))
        await router.send_multipart((client, b"", b"", _END, b""))


def _bind(socket: zmq.Socket[Any], host: str, port: int) -> None:
    socket.linger = 0
    socket.ipv6 = ":" in host
    try:
        socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port}")
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot publish KV events on {host}:{port}: {error.strerror}") from None


def _number(block_hash: BlockHash) -> int:
    """vLLM's integer for a hash: its low 64 bits."""
    return int.from_bytes(block_hash[-8:], "big")
