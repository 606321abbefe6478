"""How long does bulk work hold up a pick? Run by benchmarks/index.py, in a process of its own.

    python benchmarks/_index_pauses.py EDGES BLOCKS

prints a JSON object: per kind of bulk work the longest slice, in CPU time of the thread (what else
runs on the machine is no pause of the index) and in wall time (what a pick would have waited), and
the garbage collector's pauses, which are not counted in the slices.
"""

import gc
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import msgpack

sys.path.insert(0, str(Path(__file__).parents[1]))

from extproc.index import (
    Capacity,
    Dropped,
    Fact,
    Held,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.terms import KEY_BYTES, NO_BLOCK, InstanceId, PackedKeys

A, B = InstanceId("a"), InstanceId("b")


class Collections:
    """The garbage collector's pauses, in seconds of the thread's CPU time."""

    def __init__(self) -> None:
        self.total = self.longest = self._began = 0.0
        gc.callbacks.append(self._watch)

    def _watch(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            pause = time.thread_time() - self._began
            self.total += pause
            self.longest = max(self.longest, pause)


class Slices:
    """Times slices of bulk work, without the collector's share."""

    def __init__(self) -> None:
        self.collections = Collections()
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.walls: list[float] = []

    def time(self, kind: str, call: Callable[[], Any]) -> Any:
        """One slice."""
        collected = self.collections.total
        cpu, wall = time.thread_time(), time.perf_counter()
        result = call()
        wall = time.perf_counter() - wall
        collected = self.collections.total - collected
        cpu = time.thread_time() - cpu - collected
        self.cpu[kind] = max(self.cpu.get(kind, 0.0), cpu)
        self.wall[kind] = max(self.wall.get(kind, 0.0), wall - collected)
        if kind != "fill":
            self.walls.append(wall)
        return result

    def fold(self, kind: str, index: PrefixIndex, *facts: Fact) -> None:
        """Facts, and all slices that follow from them."""
        for fact in facts:
            self.time(kind, lambda fact=fact: index.apply(fact))
        while self.time(kind, index.step):
            pass

    def iterate(self, kind: str, items: Iterable[Any]) -> Iterator[Any]:
        """Items, each of which is a slice to make."""
        iterator, end = iter(items), object()
        while (item := self.time(kind, lambda: next(iterator, end))) is not end:
            yield item


def prompt(rng: np.random.Generator, blocks: int) -> PackedKeys:
    """A chain that nobody has yet."""
    return PackedKeys(rng.integers(1, 2**64, blocks, dtype=np.uint64).tobytes())


def shuffled(rng: np.random.Generator, chains: list[PackedKeys]) -> PackedKeys:
    """The last blocks of these, in no order."""
    last = b"".join(keys[-KEY_BYTES:] for keys in chains)
    return PackedKeys(rng.permutation(np.frombuffer(last, np.uint64)).tobytes())


def bulk(slices: Slices, edges: int, blocks: int) -> None:
    """All kinds of bulk work on an index with so many blocks in so many edges of one instance."""
    rng, index = np.random.Generator(np.random.PCG64(1)), PrefixIndex()
    for name in (A, B):
        index.apply(Joined(name, 16))
    head = prompt(rng, 1)
    chains = [PackedKeys(head + prompt(rng, blocks // edges)) for _ in range(edges)]
    for keys in chains:
        fact = Held(A, Tier.GPU, NO_BLOCK, keys, Source.EVENT)
        slices.time("fill", lambda fact=fact: index.apply(fact))
    gc.collect()
    slices.fold("growth", index)

    long = prompt(rng, edges // 5)
    slices.fold("long prompt", index, Held(A, Tier.GPU, NO_BLOCK, long, Source.EVENT))
    slices.fold("long prompt", index, Held(B, Tier.GPU, NO_BLOCK, long, Source.PICK))
    backwards = PackedKeys(np.frombuffer(long, np.uint64)[::-1].tobytes())
    slices.fold("long removal", index, Dropped(A, Tier.GPU, backwards, Source.EVENT))

    pieces = list(slices.iterate("snapshot", index.snapshot()))
    loaded = PrefixIndex()
    for _ in slices.iterate("load", loaded.load(pieces)):
        pass
    if loaded.digest != index.digest:
        raise AssertionError("the loaded index is another one")
    slices.time("reset", loaded.reset)
    slices.fold("reset", loaded)

    scattered = shuffled(rng, chains[: edges // 10])
    slices.fold("scattered removals", index, Dropped(A, Tier.GPU, scattered, Source.EVENT))
    slices.fold("smaller capacity", index, Capacity(A, Tier.GPU, blocks // 2))
    slices.fold("clear", index, Left(A))


def restart(blocks: int) -> dict[str, float]:
    """What a snapshot costs, all in all: so many blocks in edges of 32, over 32 instances."""
    rng, index = np.random.Generator(np.random.PCG64(2)), PrefixIndex()
    names = [InstanceId(f"i{n}") for n in range(32)]
    for name in names:
        index.apply(Joined(name, 16))
    head = prompt(rng, 100)
    for n in range(blocks // 32):
        keys = PackedKeys(head + prompt(rng, 32))
        index.apply(Held(names[n % 32], Tier.GPU, NO_BLOCK, keys, Source.PICK))
    held = index.stats().blocks
    begin = time.thread_time()
    pieces = list(index.snapshot())
    saved = time.thread_time()
    loaded = PrefixIndex()
    deque(loaded.load(pieces), maxlen=0)
    done = time.thread_time()
    if loaded.digest != index.digest:
        raise AssertionError("the loaded index is another one")
    began = time.thread_time()
    for _ in range(100):
        digest = index.digest
    digests = time.thread_time() - began
    assert digest == loaded.digest
    return {
        "snapshot_blocks_per_s": held / (saved - begin),
        "load_blocks_per_s": held / (done - saved),
        "snapshot_bytes_per_block": sum(len(msgpack.encode(piece)) for piece in pieces) / held,
        "digest_us": digests * 1e4,
    }


def run(edges: int, blocks: int) -> dict[str, Any]:
    """The figures."""
    slices = Slices()
    gc.collect()
    empty = slices.collections.longest
    gc.freeze()
    slices.collections.longest = 0.0
    bulk(slices, edges, blocks)
    slices.walls.sort()
    return {
        "cpu_ms": {kind: seconds * 1e3 for kind, seconds in slices.cpu.items()},
        "wall_ms": {kind: seconds * 1e3 for kind, seconds in slices.wall.items()},
        "wall_ms_p999": slices.walls[len(slices.walls) * 999 // 1000] * 1e3,
        "collection_ms": slices.collections.longest * 1e3,
        "empty_collection_ms": empty * 1e3,
        **restart(blocks),
    }


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:3]))))
