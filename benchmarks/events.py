"""How many blocks of KV-cache events are taken in a second, at how many bytes, and do picks wait?

Events as vLLM 0.32 encodes them: each message has a turn of a conversation (the blocks that are new
in it, one event) and the removals that make room for it, one event each, tail first.

- Speed: messages of 8 engines through decoder, fold and index, as `homing serve` does it, on the
  thread's CPU time. A block that was stored and one that was removed count as one each.
- Memory: what the process has grown by, per block held, with the engines' hashes and the index.
- Delay: the same from sockets, in an event loop that is given as much as it can take, while another
  process asks for picks: 500 a second, each a look-up of 2,000 blocks. From the moment it was asked
  for until it is looked up; `idle` is the same without events.

    python benchmarks/events.py [--json] [--quick]
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import zmq

sys.path.insert(0, str(Path(__file__).parents[1]))

from extproc.engines.events import Address, EventReader, Fold, Message, Stream
from extproc.index import Fact, Held, Joined, PrefixIndex, Source, Tier
from extproc.log import MemoryLog
from extproc.prompt import block_keys, pack_ids, root_seed
from extproc.terms import NO_BLOCK, BlockKey, InstanceId

BLOCK = 16
ENGINES = 8
TURN = 20
"""Blocks that are new in a turn."""

LENGTH = 25
"""Turns of a conversation, after which a new one begins."""

OPEN = 8
"""Conversations that go on at a time."""

POOL = "bench"
DEPTH = 2000
PICKS_A_SECOND = 500


@dataclass(frozen=True, slots=True)
class Size:
    """Blocks of each engine's cache, turns that are timed in all, and turns from sockets."""

    cache: int
    turns: int
    published: int


FULL = Size(cache=125_000, turns=40_000, published=20_000)
QUICK = Size(cache=2_000, turns=1_000, published=500)


class Engine:
    """One engine's cache as its events show it: conversations that grow, and the oldest that go."""

    def __init__(self, number: int, cache: int) -> None:
        self._random = random.Random(number)
        self._tokens = [self._random.randrange(150_000) for _ in range(10_000)]
        self._cache = cache
        self._held = 0
        self._conversations: OrderedDict[int, list[int]] = OrderedDict()
        self._born = 0
        self._seq = 0
        self._named = number << 40

    def turn(self) -> Message:
        """One message: a turn's new blocks, and what has to go for them."""
        chain = self._conversation()
        events: list[Any] = [
            {"type": "BlockRemoved", "block_hashes": [gone], "medium": "GPU", "group_idx": 0}
            for gone in self._evicted()
        ]
        hashes = [self._hash() for _ in range(TURN)]
        start = self._random.randrange(len(self._tokens) - TURN * BLOCK)
        ids = [self._born, *self._tokens[start + 1 : start + TURN * BLOCK]]
        events.append(
            {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": chain[-1] if chain else None,
                "token_ids": ids,
                "block_size": BLOCK,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None] * TURN,
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
        )
        chain += hashes
        self._held += TURN
        self._seq += 1
        return Message(self._seq - 1, msgspec.msgpack.encode([time.time(), events, 0]))

    def _conversation(self) -> list[int]:
        newest = list(self._conversations)[-OPEN:] if self._born < OPEN else self._newest()
        name = self._random.choice(newest) if len(newest) == OPEN else None
        if name is None or len(self._conversations[name]) >= LENGTH * TURN:
            self._born += 1
            name = self._born
            self._conversations[name] = []
        self._conversations.move_to_end(name)
        return self._conversations[name]

    def _newest(self) -> list[int]:
        names = reversed(self._conversations)
        return [name for _, name in zip(range(OPEN), names, strict=False)]

    def _evicted(self) -> Iterator[int]:
        while self._held + TURN > self._cache:
            name, chain = next(iter(self._conversations.items()))
            yield chain.pop()
            self._held -= 1
            if not chain:
                del self._conversations[name]

    def _hash(self) -> int:
        self._named += 1
        return self._named * 0x9E3779B97F4A7C15 & (1 << 64) - 1


class Homing:
    """What stands behind the sockets in `homing serve`: streams, the log, the index."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self._log = MemoryLog()
        self._log.subscribe(POOL, lambda _, fact: self.index.apply(fact))
        self.streams = []
        for number in range(ENGINES):
            name = InstanceId(f"engine-{number}")
            self.append([Joined(name, BLOCK)])
            self.streams.append(Stream(Fold(name, BLOCK, _root), replayable=False))

    def append(self, facts: Sequence[Fact]) -> None:
        """As `Pool.append`."""
        if facts:
            self._log.append(POOL, facts)

    def take(self, number: int, message: Message) -> None:
        """One message of an engine's, wholly."""
        for facts in self.streams[number].receive(message):
            self.append(facts)

    @property
    def counted(self) -> int:
        """Blocks that were stored and removed."""
        return sum(sum(stream.fold.applied.values()) for stream in self.streams)


def _root(adapter: str, salt: str) -> BlockKey:
    return root_seed(secret=b"", model="m", adapter=adapter, salt=salt, block_size=BLOCK)


def speed_and_memory(size: Size) -> dict[str, float]:
    """Fill the caches, then time turns in full ones. Another process makes the messages."""
    ours, theirs = multiprocessing.Pipe()
    fills = size.cache // TURN * ENGINES
    maker = multiprocessing.Process(target=_make, args=(theirs, size.cache, fills + size.turns))
    maker.start()
    theirs.close()
    gc.collect()
    before = _resident()
    homing = Homing()
    for turn in range(fills):
        homing.take(turn % ENGINES, _received(ours))
    while homing.index.step():
        pass
    gc.collect()
    grown, held = _resident() - before, homing.index.stats().held
    started, busy = homing.counted, 0.0
    for turn in range(fills, fills + size.turns):
        message = _received(ours)
        began = time.thread_time()
        homing.take(turn % ENGINES, message)
        busy += time.thread_time() - began
    maker.join()
    assert homing.index.stats().refused == {}
    assert homing.index.stats().held == sum(stream.fold.blocks for stream in homing.streams)
    return {
        "blocks_per_s": round((homing.counted - started) / busy),
        "bytes_per_block": round(grown / held, 1),
        "blocks_held": held,
        "digest": homing.index.digest,
    }


def _make(pipe: Connection, cache: int, turns: int) -> None:
    engines = [Engine(number, cache) for number in range(ENGINES)]
    for turn in range(turns):
        message = engines[turn % ENGINES].turn()
        pipe.send_bytes(message.seq.to_bytes(8, "big") + message.payload)


def _received(pipe: Connection) -> Message:
    data = pipe.recv_bytes()
    return Message(int.from_bytes(data[:8], "big"), data[8:])


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def delay(size: Size) -> dict[str, float]:
    """Picks while events come as fast as they can be taken in, and without any."""
    homing = Homing()
    keys = block_keys(pack_ids(range(DEPTH * BLOCK)), _root("", ""), BLOCK)
    homing.append([Held(InstanceId("engine-0"), Tier.GPU, NO_BLOCK, keys, Source.PICK)])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    delays: list[float] = []

    def asked() -> None:
        while True:
            try:
                (sent,) = struct.unpack("d", ours.recv(8))
            except BlockingIOError:
                return
            homing.index.match(keys)
            delays.append(time.perf_counter() - sent)

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, asked)
    asking = multiprocessing.Process(target=_ask, args=(theirs,))
    asking.start()
    await _until(lambda: len(delays) > size.published // 10)
    idle, delays = delays, []
    ready, ports = multiprocessing.Pipe()
    publishing = multiprocessing.Process(target=_publish, args=(ports, size))
    publishing.start()
    addresses = await asyncio.to_thread(ready.recv)
    reader = EventReader()
    for number, address in enumerate(addresses):
        reader.subscribe(Address(address), homing.streams[number], homing.append)
    await asyncio.to_thread(ready.recv)
    delays.clear()
    began = time.perf_counter()
    ready.send("go")
    total = await asyncio.to_thread(ready.recv)
    await _until(lambda: homing.counted >= total)
    seconds = time.perf_counter() - began
    ready.send("done")
    loop.remove_reader(ours)
    asking.terminate()
    publishing.join()
    await reader.close()
    assert homing.index.stats().refused == {}
    return {
        "pick_delay_ms_p99": _ms(delays, 0.99),
        "pick_delay_ms_p50": _ms(delays, 0.5),
        "pick_delay_ms_max": _ms(delays, 1.0),
        "pick_delay_idle_ms_p99": _ms(idle, 0.99),
        "picks": len(delays),
        "blocks_per_s_from_sockets": round(total / seconds),
    }


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


def _ask(where: socket.socket) -> None:
    due = time.perf_counter()
    while True:
        due += 1 / PICKS_A_SECOND
        time.sleep(max(0.0, due - time.perf_counter()))
        where.send(struct.pack("d", time.perf_counter()))


def _publish(ports: Connection, size: Size) -> None:
    context = zmq.Context()
    publishers = [context.socket(zmq.XPUB) for _ in range(ENGINES)]
    for publisher in publishers:
        publisher.sndhwm = 0
    bound = [publisher.bind_to_random_port("tcp://127.0.0.1") for publisher in publishers]
    ports.send([f"tcp://127.0.0.1:{port}" for port in bound])
    engines = [Engine(number, max(1000, size.published)) for number in range(ENGINES)]
    turns = [engines[turn % ENGINES].turn() for turn in range(size.published)]
    for publisher in publishers:
        publisher.recv()  # its subscription
    ports.send("subscribed")
    ports.recv()
    for turn, message in enumerate(turns):
        frames = (b"", message.seq.to_bytes(8, "big"), message.payload)
        publishers[turn % ENGINES].send_multipart(frames)
    counts = [len(event["block_hashes"]) for message in turns for event in _events(message)]
    ports.send(sum(counts))
    ports.recv()
    context.destroy(linger=0)


def _events(message: Message) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = msgspec.msgpack.decode(message.payload)[1]
    return events


def _ms(seconds: list[float], share: float) -> float:
    return round(sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000, 3)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    size = QUICK if options.quick else FULL
    figures = speed_and_memory(size) | uvloop.run(delay(size))
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:>28}  {value}")


if __name__ == "__main__":
    main()
