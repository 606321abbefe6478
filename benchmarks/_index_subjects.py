"""The structures that benchmarks/index.py compares, each in a process of its own.

    python benchmarks/_index_subjects.py SUBJECT CONVERSATIONS WORKERS

reads a JSON list [task, *arguments] a line and answers with a JSON object a line. Needs numpy and
the subject, nothing else, because some of them want an environment of their own.

Workload: C conversations of 2,000 blocks, conversation c on worker c mod W, blocks 0-99 the same
for all; keys uniform in [1, 2⁶⁴) (numpy PCG64, seed 1: the shared 100, then C × 1,900).
"""

import gc
import json
import resource
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SHARED, LENGTH, BATCH = 100, 2_000, 100


class Subject(ABC):
    """What every structure can be asked. `made_*` turn keys into its own form, before the clock."""

    steps: ClassVar[bool] = False

    def join(self, workers: int, capacity: int) -> None:  # noqa: B027
        """The workers exist."""

    @abstractmethod
    def made_store(self, worker: int, chain: Any, start: int, stop: int) -> Any:
        """Blocks `start` to `stop` of this chain are stored by the worker."""

    @abstractmethod
    def store(self, op: Any) -> None:
        """Do what `made_store` made."""

    def made_query(self, keys: Any) -> Any:
        """A list of ints, unless the structure has another form."""
        return keys.tolist()

    @abstractmethod
    def query(self, keys: Any) -> Any:
        """Worker → leading blocks."""

    def normal(self, answer: Any) -> dict[int, int]:
        """An answer as a dict of numbers, without zeros."""
        return {worker: depth for worker, depth in answer.items() if depth}

    def step(self) -> bool:
        """A slice of upkeep; False when there is none left."""
        return False

    def numbers(self) -> dict[str, float]:
        """Sizes that only the structure knows."""
        return {}


class Removing(Subject):
    """A structure that can also forget blocks."""

    @abstractmethod
    def made_remove(self, worker: int, keys: Any) -> Any:
        """The worker drops these blocks."""

    @abstractmethod
    def remove(self, op: Any) -> None:
        """Do what `made_remove` made."""


class Homing(Removing):
    """extproc.index.PrefixIndex, as served."""

    steps = True

    def __init__(self) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import extproc.index as index
        from extproc.terms import BlockKey, InstanceId, PackedKeys

        self.api, self.key, self.packed = index, BlockKey, PackedKeys
        self.index = index.PrefixIndex()
        self.names = [InstanceId(f"w{worker}") for worker in range(4096)]

    def join(self, workers: int, capacity: int) -> None:
        for name in self.names[:workers]:
            self.index.apply(self.api.Joined(name, 16))
            if capacity:
                self.index.apply(self.api.Capacity(name, self.api.Tier.GPU, capacity))

    def made_store(self, worker: int, chain: Any, start: int, stop: int) -> Any:
        parent = self.key(int(chain[start - 1]) if start else 0)
        keys = self.packed(chain[start:stop].tobytes())
        tier, source = self.api.Tier.GPU, self.api.Source.EVENT
        return self.api.Held(self.names[worker], tier, parent, keys, source)

    def store(self, op: Any) -> None:
        self.index.apply(op)

    def made_query(self, keys: Any) -> Any:
        return keys.tobytes()

    def query(self, keys: Any) -> Any:
        return self.index.match(keys)

    def normal(self, answer: Any) -> dict[int, int]:
        return {int(name[1:]): depths.gpu for name, depths in answer.items()}

    def made_remove(self, worker: int, keys: Any) -> Any:
        tier, source = self.api.Tier.GPU, self.api.Source.EVENT
        return self.api.Dropped(self.names[worker], tier, self.packed(keys.tobytes()), source)

    def remove(self, op: Any) -> None:
        self.index.apply(op)

    def leave(self, worker: int) -> None:
        self.index.apply(self.api.Left(self.names[worker]))

    def step(self) -> bool:
        return self.index.step()

    def numbers(self) -> dict[str, float]:
        stats = self.index.stats()
        return {"edges": stats.edges, "blocks": stats.blocks, "table_bytes": stats.table_bytes}


class Native(Removing):
    """NVIDIA Dynamo's tree in Rust, as called from Python (events are JSON, encoded before)."""

    def __init__(self) -> None:
        from dynamo.llm import RadixTree

        self.tree = RadixTree()
        self.event = 0
        self.lost = 0

    def _event(self, data: dict[str, Any]) -> bytes:
        self.event += 1
        return json.dumps({"event_id": self.event, "data": data}).encode()

    def made_store(self, worker: int, chain: Any, start: int, stop: int) -> Any:
        blocks = [{"block_hash": k, "tokens_hash": k} for k in chain[start:stop].tolist()]
        parent = int(chain[start - 1]) if start else None
        return worker, self._event({"stored": {"parent_hash": parent, "blocks": blocks}})

    def store(self, op: Any) -> None:
        self.tree.apply_event(*op)

    def query(self, keys: Any) -> Any:
        return self.tree.find_matches(keys).scores

    def normal(self, answer: Any) -> dict[int, int]:
        return {worker: depth for (worker, _), depth in answer.items()}

    def made_remove(self, worker: int, keys: Any) -> Any:
        return worker, self._event({"removed": {"block_hashes": keys.tolist()}})

    def remove(self, op: Any) -> None:
        try:
            self.tree.apply_event(*op)
        except RuntimeError:  # it lost the block with an earlier one of the same path
            self.lost += 1

    def numbers(self) -> dict[str, float]:
        return {"lost": self.lost}


class Gorgo(Subject):
    """gorgo-lb's trie: keys of 32 bits, a whole prefix a batch, no removal of blocks."""

    def __init__(self) -> None:
        from gorgo.radix_trie import RadixTrie

        self.trie = RadixTrie()
        self.names: list[str] = []

    def join(self, workers: int, capacity: int) -> None:
        self.names = [str(worker) for worker in range(workers)]

    def made_store(self, worker: int, chain: Any, start: int, stop: int) -> Any:
        return (chain[:stop] >> np.uint64(32)).tolist(), self.names[worker]

    def store(self, op: Any) -> None:
        self.trie.insert(*op)

    def made_query(self, keys: Any) -> Any:
        return (keys >> np.uint64(32)).tolist()

    def query(self, keys: Any) -> Any:
        return self.trie.cached_prefix_lengths(keys, self.names)

    def normal(self, answer: Any) -> dict[int, int]:
        return {int(worker): depth for worker, depth in answer.items() if depth}


class BisectedDict(Removing):
    """A dict of bitmasks; how far each worker goes is found by bisection over depth (no holes)."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}

    def made_store(self, worker: int, chain: Any, start: int, stop: int) -> Any:
        return 1 << worker, chain[start:stop].tolist()

    def store(self, op: Any) -> None:
        bit, keys = op
        masks = self.masks
        for key in keys:
            masks[key] = masks.get(key, 0) | bit

    def query(self, keys: Any) -> Any:
        get = self.masks.get
        found: dict[int, int] = {}
        low, alive = 0, get(keys[0], 0)
        last = len(keys)
        while alive:
            # The deepest block that all who are left hold; whoever ends there leaves.
            high = last
            while high - low > 1:
                middle = (low + high) >> 1
                if get(keys[middle], 0) & alive == alive:
                    low = middle
                else:
                    high = middle
            rest = (get(keys[high], 0) & alive) if high < last else 0
            gone = alive ^ rest
            while gone:
                bit = gone & -gone
                found[bit.bit_length() - 1] = high
                gone ^= bit
            low, alive = high, rest
        return found

    def made_remove(self, worker: int, keys: Any) -> Any:
        return ~(1 << worker), keys.tolist()

    def remove(self, op: Any) -> None:
        rest, keys = op
        masks = self.masks
        for key in keys:
            left = masks[key] & rest
            if left:
                masks[key] = left
            else:
                del masks[key]


SUBJECTS: dict[str, type[Subject]] = {
    "homing": Homing,
    "native": Native,
    "gorgo": Gorgo,
    "dict": BisectedDict,
}


class Run:
    """One structure under the workload."""

    def __init__(self, subject: Subject, conversations: int, workers: int) -> None:
        self.subject, self.conversations, self.workers = subject, conversations, workers
        self.rng = np.random.Generator(np.random.PCG64(1))
        self.shared = self._fresh(SHARED)
        self.own = self._fresh(conversations, LENGTH - SHARED)
        self.order = np.random.Generator(np.random.PCG64(2))
        self.removed: set[int] = set()

    def _fresh(self, *shape: int) -> Any:
        return self.rng.integers(1, 2**64, shape, dtype=np.uint64)

    def chain(self, conversation: int) -> Any:
        return np.concatenate([self.shared, self.own[conversation]])

    def store(self) -> dict[str, float]:
        """Everything, one conversation after another in batches of 100."""
        subject = self.subject
        subject.join(self.workers, 0)
        gc.collect()
        gc.freeze()
        before, seconds, worst = _resident(), 0.0, 0.0
        for conversation in range(self.conversations):
            chain, worker = self.chain(conversation), conversation % self.workers
            ops = [
                subject.made_store(worker, chain, at, at + BATCH) for at in range(0, LENGTH, BATCH)
            ]
            begin = time.process_time()
            if subject.steps:
                for op in ops:
                    start = time.thread_time()
                    subject.store(op)
                    worst = max(worst, time.thread_time() - start)
            else:
                for op in ops:
                    subject.store(op)
            seconds += time.process_time() - begin
        while subject.step():
            pass
        ops = chain = None
        gc.collect()
        pairs = self.conversations * LENGTH
        numbers = subject.numbers()
        return {
            "blocks_per_s": pairs / seconds,
            "bytes_per_pair": (_resident() - before) / pairs,
            "table_bytes_per_pair": numbers.get("table_bytes", 0) / pairs,
            "pause_ms": worst * 1e3,
        }

    def match(self, kind: str, queries: int) -> dict[str, Any]:
        """So many queries of a kind, another conversation each time; every answer is checked."""
        chosen = self.order.integers(0, self.conversations, queries)
        everybody = dict.fromkeys(range(min(self.workers, self.conversations)), SHARED)
        asked = []
        for conversation in map(int, chosen):
            chain = self.chain(conversation)
            expected = dict(everybody)
            if kind == "known":
                expected[conversation % self.workers] = LENGTH
            elif kind == "half":
                chain = np.concatenate([chain[: LENGTH // 2], self._fresh(LENGTH // 2)])
                expected[conversation % self.workers] = LENGTH // 2
            elif kind == "unknown":
                chain, expected = self._fresh(LENGTH), {}
            else:
                chain = self.shared
            asked.append((self.subject.made_query(chain), expected))
        return self._timed(asked)

    def _timed(self, asked: list[Any]) -> dict[str, Any]:
        query, times, answers = self.subject.query, [], []
        for keys, _ in asked:
            start = time.perf_counter_ns()
            answer = query(keys)
            times.append(time.perf_counter_ns() - start)
            answers.append(answer)
        for answer, (_, expected) in zip(answers, asked, strict=True):
            found = self.subject.normal(answer)
            if found != expected:
                raise AssertionError(f"{type(self.subject).__name__}: {found} is not {expected}")
        times.sort()
        return {
            "us_p50": times[len(times) // 2] / 1e3,
            "us_p99": times[len(times) * 99 // 100] / 1e3,
            "checked": len(answers),
        }

    def remove(self) -> dict[str, float]:
        """A tenth of the conversations, each in batches of 100 from the tail to the head."""
        subject = self.subject
        assert isinstance(subject, Removing)
        seconds, worst, count = 0.0, 0.0, 0
        for conversation in range(0, self.conversations, 10):
            own = self.own[conversation]
            ops = [
                subject.made_remove(conversation % self.workers, own[at - BATCH : at][::-1])
                for at in range(len(own), 0, -BATCH)
            ]
            begin = time.process_time()
            for op in ops:
                subject.remove(op)
            seconds += time.process_time() - begin
            count += len(own)
            self.removed.add(conversation)
        return {"blocks_per_s": count / seconds, "pause_ms": worst * 1e3}

    def remove_single(self, number: int) -> dict[str, float]:
        """Random blocks of random conversations, one at a time."""
        subject = self.subject
        assert isinstance(subject, Removing)
        left = [c for c in range(self.conversations) if c not in self.removed]
        width = LENGTH - SHARED
        times = []
        for place in self.order.choice(len(left) * width, number, replace=False).tolist():
            conversation, at = left[place // width], place % width
            keys = self.own[conversation][at : at + 1]
            op = subject.made_remove(conversation % self.workers, keys)
            start = time.perf_counter_ns()
            subject.remove(op)
            times.append(time.perf_counter_ns() - start)
        times.sort()
        return {
            "us_p50": times[len(times) // 2] / 1e3,
            "us_p99": times[len(times) * 99 // 100] / 1e3,
            "lost": subject.numbers().get("lost", 0) / number,
        }

    def turns(self, conversations: int, turns: int, blocks: int) -> dict[str, float]:
        """Interleaved conversations that grow by a few blocks a turn, on 64 workers."""
        subject = self.subject
        keys = self._fresh(conversations, turns * blocks)
        subject.join(64, 2 * conversations * turns * blocks // 64)
        ops = [
            subject.made_store(c % 64, keys[c], t * blocks, (t + 1) * blocks)
            for t in range(turns)
            for c in range(conversations)
        ]
        gc.collect()
        gc.freeze()
        store = subject.store
        begin = time.process_time()
        for op in ops:
            store(op)
        return {"blocks_per_s": keys.size / (time.process_time() - begin)}

    def staggered(self, workers: int, queries: int) -> dict[str, Any]:
        """One edge of 2,000 blocks of which each worker holds another length, evenly spread."""
        subject = self.subject
        subject.join(workers, 0)
        chain = self._fresh(LENGTH)
        expected = {w: LENGTH * (w + 1) // workers for w in range(workers)}
        for worker, length in reversed(expected.items()):
            subject.store(subject.made_store(worker, chain, 0, length))
        return self._timed([(subject.made_query(chain), expected)] * queries)

    def edges(self, number: int, blocks: int) -> dict[str, float]:
        """So many edges of so many blocks below one shared head, held by 64 workers in turn."""
        subject = self.subject
        subject.join(64, 0)
        gc.collect()
        before = _resident()
        subject.store(subject.made_store(0, self.shared, 0, SHARED))
        for start in range(0, number, 1000):
            # Nothing but the keys is made beside the index, or what is freed between them counts.
            chains = self._fresh(min(1000, number - start), 1 + blocks)
            chains[:, 0] = self.shared[-1]
            ops = [
                subject.made_store(n % 64, chain, 1, 1 + blocks) for n, chain in enumerate(chains)
            ]
            for op in ops:
                subject.store(op)
        ops = chains = op = None
        while subject.step():
            pass
        gc.collect()
        pairs = number * blocks
        table = subject.numbers()["table_bytes"]
        return {
            "bytes": (_resident() - before - table) / pairs,
            "bytes_exact": (_resident() - before) / pairs,
        }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Answer tasks until there are no more."""
    name, conversations, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    run = Run(SUBJECTS[name](), conversations, workers)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        print(json.dumps(getattr(run, task)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
