"""Three Homings behind one Envoy, an etcd of three members, engines, and clients that never stop.

All are real processes on loopback. What clients saw is kept turn by turn, what replicas say of
themselves is read from their admin ports.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.engine import EngineSettings
from extproc.demo.stack import Replica, Stack
from extproc.log.etcd.log import REJECTED as POSSIBLY_REJECTED
from tests.e2e.client import Answer, post
from tests.etcd.relay import Relay, relay
from tests.etcd.server import Cluster

PATIENCE_S = 90
CLIENTS = 6
PAUSE_S = 0.05
TURNS = 8
OPENING = "You guide ships through the harbour of a town that nobody has heard of. " * 30

POOL = "demo"
BLOCK = 16
HOME_SHARE = 0.9

ENGINE = EngineSettings(
    prefill_tokens_per_s=1e6,
    request_ms=0.0,
    decode_ms=0.5,
    decode_ms_per_running=0.0,
    blocks=40_000,
)
WINDOW_S = 4.0
"""Over which a hit ratio is taken: some hundred turns."""

ALIKE_S = 5.0
"""How soon after a fault's end the replicas are the same again."""

PICK_S = 2.0
"""A pick that waited for something would be out of time after it, and counted."""


REJECTED = {*POSSIBLY_REJECTED} - {"repeated"}
"""Records that were left out for a fault of ours. A repeated one is none: a member that froze with
a put in hand may make it when it wakes up, after the record was written elsewhere and trimmed."""

TROUBLES: list[tuple[str, dict[str, str]]] = [
    *(("homing_picks_total", {"reason": reason}) for reason in ("pick_timeout", "encode", "match")),
    *(("homing_log_rejected_records", {"reason": reason}) for reason in sorted(REJECTED)),
    ("homing_log_dropped_facts", {}),
    ("homing_log_skipped_facts", {}),
    ("homing_internal_errors_total", {}),
]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client saw. possible: tokens of the turn before, in full blocks; 0 for a first."""

    at: float
    status: int
    why: str
    cached: int
    possible: int

    @property
    def home(self) -> bool:
        return self.cached >= HOME_SHARE * self.possible


class FaultStack(Stack):
    """A stack whose Homings have a wall clock that a file puts off.

    own_log: what is different in the log's configuration of one replica.
    """

    own_log: Mapping[str, dict[str, Any]] = {}

    def replica_config(self, replica: Replica) -> dict[str, Any]:
        config = super().replica_config(replica)
        return {**config, "log": {**config["log"], **self.own_log.get(replica.name, {})}}

    @property
    def clock(self) -> Path:
        """Write seconds there."""
        return self.folder / "clock"

    def _homing(self, command: str, replica: Replica) -> list[str]:
        if command != "serve":
            return super()._homing(command, replica)
        module = ("-m", "tests.faults.stepped_clock", str(self.clock))
        return [sys.executable, *module, command, "--config", str(self.config_file(replica))]


@dataclass(slots=True)
class World:
    """What runs, and what was seen of it. wires: to etcd, of the last replica."""

    stack: FaultStack
    etcd: Cluster
    wires: Sequence[Relay]
    http: aiohttp.ClientSession
    turns: list[Turn] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def running(self) -> list[Replica]:
        """Replicas whose process runs."""
        return [one for one in self.stack.replicas if self.stack.processes[one.name].running]

    # What clients see

    async def home_share(self) -> float:
        """Share of the later turns of the next seconds that came home."""
        begun = monotonic()
        await asyncio.sleep(WINDOW_S)
        later = [turn for turn in self.turns if turn.at >= begun and turn.possible]
        assert len(later) > 50, "the clients hang"
        return sum(turn.home for turn in later) / len(later)

    async def home_again(self, level: float) -> None:
        """Wait until turns come home as they did."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.home_share() < level - 0.05:
                pass

    async def more_turns(self, count: int = 60) -> None:
        """Wait until so many further turns have ended."""
        wanted = len(self.turns) + count
        await until(lambda: len(self.turns) >= wanted)

    # What replicas say

    async def metric(self, replica: Replica, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        async with self.http.get(f"{replica.admin_url}/metrics") as page:
            families = text_string_to_metric_families(await page.text())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def leader(self) -> Replica:
        """The one that writes snapshots."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for one in self.running:
                    if await self.metric(one, "homing_log_leader"):
                        return one
                await asyncio.sleep(0.05)

    async def digests(self, replica: Replica) -> dict[int, str]:
        """By revision."""
        async with self.http.get(f"{replica.admin_url}/pools/{POOL}/index/digests") as page:
            return dict((await page.json())["digests"])

    async def cut_off(self) -> None:
        """Wait until no replica gets its facts into the log."""
        async with asyncio.timeout(PATIENCE_S):
            while min([await self.behind(one) for one in self.running]) < 1.0:
                await self.more_turns()

    async def behind(self, replica: Replica) -> float:
        """Age of the oldest fact of its own that has not come back from the log, in seconds."""
        return await self.metric(replica, "homing_log_behind_seconds")

    async def alike(self) -> float:
        """Wait until all replicas have what etcd has now and what they had to add.

        Their digests at one revision beyond that are the same. Returns how long it took (s).
        """
        begun = monotonic()
        floor = await self.etcd.revision()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                known = [await self.digests(one) for one in self.running]
                common = set.intersection(*map(set, known))
                late = max([await self.behind(one) for one in self.running])
                if common and max(common) > floor and late < 1.0:
                    break
                await asyncio.sleep(0.05)
        took = monotonic() - begun
        differing = [at for at in common if len({digests[at] for digests in known}) > 1]
        if differing:  # one may have been asked between two facts of one record
            known = [await self.digests(one) for one in self.running]
            differing = [
                at for at in differing if len({each[at] for each in known if at in each}) > 1
            ]
        assert not differing, f"replicas differ at {differing}"
        return took

    async def recovered(self, level: float) -> None:
        """A fault is over: the replicas are the same in time, turns come home, nothing is lost."""
        took = await self.alike()
        assert took <= ALIKE_S, f"replicas were the same again after {took:.1f} s"
        await self.home_again(level)
        await self.nothing_lost()

    async def troubles(self, replica: Replica) -> dict[str, float]:
        """What must not have happened to a replica, and how often it did."""
        return {
            f"{name} {labels}": found
            for name, labels in TROUBLES
            if (found := await self.metric(replica, name, **labels))
        }

    async def nothing_lost(self) -> None:
        """No client failed, no pick waited, no fact was left out, and etcd has them all.

        A replica that starts now reads all from etcd, and is the same as those that were there.
        """
        assert not self.failures, self.failures
        assert {turn.status for turn in self.turns} == {200}
        troubles = {one.name: await self.troubles(one) for one in self.running}
        assert not any(troubles.values()), troubles
        *_, last = self.stack.replicas
        if self.stack.processes[last.name].running:
            await asyncio.to_thread(self.stack.kill, last.name)
        await asyncio.to_thread(self.stack.start, last.name)
        await self.alike()
        assert await self.metric(last, "homing_log_facts_total")


@asynccontextmanager
async def world(folder: Path, etcd: Cluster, **log: Any) -> AsyncIterator[World]:
    """One that serves, with clients on their way. log: further keys of Homing's `log`."""
    settings = {"kind": "etcd", "endpoints": etcd.endpoints, **log}
    async with AsyncExitStack() as cleanup:
        wires = [await cleanup.enter_async_context(relay(member)) for member in etcd.endpoints]
        stack = FaultStack(
            engines=3,
            replicas=3,
            engine=ENGINE,
            folder=folder,
            config={"log": settings, "limits": {"pick_timeout_ms": round(PICK_S * 1000)}},
            envoy={"message_timeout_ms": round(PICK_S * 1500)},
        )
        last = stack.replicas[-1].name
        stack.own_log = {last: {"endpoints": [wire.endpoint for wire in wires]}}
        await asyncio.to_thread(stack.__enter__)
        cleanup.push_async_callback(asyncio.to_thread, stack.__exit__, None, None, None)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        http = await cleanup.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        found = World(stack, etcd, wires, http)
        numbers = itertools.count()
        clients = [asyncio.ensure_future(_client(found, numbers)) for _ in range(CLIENTS)]
        try:
            yield found
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def until(true: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


async def _client(world: World, numbers: "itertools.count[int]") -> None:
    """One conversation after the other, until it is cancelled."""
    for number in numbers:
        said: list[dict[str, str]] = [{"role": "system", "content": f"{number}. {OPENING}"}]
        before = 0
        for turn in range(TURNS):
            said.append({"role": "user", "content": f"Question {turn}: which way now?"})
            answer = await _ask(world, said)
            if answer is None:
                break
            world.turns.append(
                Turn(monotonic(), answer.status, answer.why, answer.cached_tokens, before)
            )
            before = answer.usage["prompt_tokens"] // BLOCK * BLOCK
            said.append({"role": "assistant", "content": answer.text})
            await asyncio.sleep(PAUSE_S)


async def _ask(world: World, said: Sequence[dict[str, str]]) -> Answer | None:
    body = {"model": world.stack.model, "messages": said, "max_tokens": 16}
    try:
        answer = await post(world.http, f"{world.stack.url}/v1/chat/completions", body)
    except (aiohttp.ClientError, TimeoutError) as error:
        world.failures.append(type(error).__name__)
        return None
    if answer.status != 200:
        world.failures.append(f"{answer.status} {answer.text}")
        return None
    return answer
