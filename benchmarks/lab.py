"""How far can the replay lab be believed?

The same small trace is played twice: in real time, by a streaming client through Envoy and Homing
to simulated engines, all of them processes with sockets between them; and in the lab, in virtual
time. The engines are slow (2,000 tokens a second), so that what Python and sockets take is small
beside prefills, and their caches are small, so that they evict. Two ways to route: `priced`, which
is Homing, and `round_robin`, where the client asks one engine after the other, past Envoy. The
lab's router knows what Homing knows: no first tokens, and speeds from the engines' counters.

real_*, lab_*: TTFT in seconds and hit ratio, means over the seeds. ratio_*: real over lab, of
these. ratio_ttft_mean_low, _high: the same of single seeds. off_ms_p50: how far a request's two
TTFTs are apart; they need not be close where one request may go elsewhere. came_late_ms_p99: of the
client.
Every answer is checked against the trace: its text, and the tokens of its prompt.

    python benchmarks/lab.py [--json] [--quick] [--seeds 3] [--seconds 100]
"""

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np
from _lab_trace import Recorded, Sent, Writer

from extproc.config import FlowControl
from extproc.demo.engine import EngineSettings
from extproc.demo.openai import CHAT
from extproc.demo.prefix_cache import RESERVED_BLOCKS
from extproc.demo.stack import Stack
from extproc.replay.baselines import BASELINES
from extproc.replay.engine import EngineModel
from extproc.replay.fleet import Blur
from extproc.replay.lab import Setting, replay
from extproc.routing import POLICIES, Policy

ENGINES = 4
ENGINE = EngineSettings(
    blocks=1_500,
    prefill_tokens_per_s=2_000.0,
    request_ms=40.0,
    decode_ms=15.0,
    decode_ms_per_running=0.2,
)
CONVERSATIONS_PER_S = 1.25
"""Engines prefill for six tenths of the time, with Homing."""

FIRST_SEED = 300
PATIENT_S = 120

POLICY: Mapping[str, Callable[[], Policy]] = {
    "priced": POLICIES["priced"],
    "round_robin": BASELINES["round-robin"],
}


class SlowStack(Stack):
    """Homing is told how fast its engines prefill, as the lab's router is."""

    def _pool(self, common: EngineSettings) -> dict[str, Any]:
        return {**super()._pool(common), "prefill_rate": common.prefill_tokens_per_s}


@dataclass(frozen=True, slots=True)
class Played:
    """One turn, at the sockets or in the lab. ttft, late: seconds."""

    ttft: float
    cached: int
    prompt: int
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one play, or means of several."""

    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    hit: float

    @classmethod
    def of(cls, turns: Sequence[Played]) -> "Figures":
        ttft = np.array([turn.ttft for turn in turns])
        p50, p90 = (float(q) for q in np.quantile(ttft, (0.5, 0.9)))
        hit = sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns)
        return cls(float(ttft.mean()), p50, p90, hit)

    @classmethod
    def mean(cls, several: Sequence["Figures"]) -> "Figures":
        return cls(*(mean(getattr(one, name) for one in several) for name in cls.__slots__))


async def ask(http: aiohttp.ClientSession, url: str, turn: Sent, began: float) -> Played:
    """Send one turn at its time, and see its first token come."""
    await asyncio.sleep(began + turn.at - perf_counter())
    sent = perf_counter()
    first = None
    text, usage = "", None
    headers = {"content-type": "application/json"}
    async with http.post(url + CHAT, data=turn.body, headers=headers) as response:
        assert response.status == 200, (response.status, await response.text())
        async for line in response.content:
            data = line.removeprefix(b"data: ").strip()
            if not data or data == b"[DONE]":
                continue
            first = first or perf_counter()
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            text += "".join(one["delta"].get("content", "") for one in chunk["choices"])
    assert text == turn.answer, "the engine answered otherwise than the trace says"
    assert first
    assert usage
    assert usage["prompt_tokens"] == turn.request.tokens, usage
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    late = sent - began - turn.at
    return Played(first - sent, cached, turn.request.tokens, late)


async def play(turns: Sequence[Sent], urls: Iterator[str]) -> list[Played]:
    """All turns, each at its time and at the next of the URLs."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=PATIENT_S)
    ) as http:
        began = perf_counter() + 0.5
        asked = (ask(http, url, turn, began) for turn, url in zip(turns, urls, strict=False))
        return list(await asyncio.gather(*asked))


def at_the_sockets(turns: Sequence[Sent], policy: str) -> list[Played]:
    """In real time, in the order of the turns."""
    with SlowStack(ENGINES, engine=ENGINE, config={"explain": False}) as stack:
        engines = [stack.engine_url(name) for name in stack.engines]
        urls = itertools.cycle(engines if policy == "round_robin" else [stack.url])
        played = asyncio.run(play(turns, urls))
        stack.check()
    return played


def in_the_lab(turns: Sequence[Sent], policy: str) -> list[Played]:
    """In virtual time, in the order of the turns."""
    setting = Setting(
        ENGINES,
        (ENGINE.blocks - RESERVED_BLOCKS) * ENGINE.block_size,
        EngineModel(
            prefill_rate=ENGINE.prefill_tokens_per_s,
            overhead_s=ENGINE.request_ms / 1000,
            decode_s=ENGINE.decode_ms / 1000,
            decode_running_s=ENGINE.decode_ms_per_running / 1000,
        ),
        sees_first_token=False,
        knows_overhead=False,
        blur=Blur(learns_speed=True),
        max_wait_s=FlowControl().max_wait_s if policy in POLICIES else 0.0,
    )
    outcome = replay(Recorded(turns, ENGINE.block_size), POLICY[policy](), setting)
    columns = zip(outcome.at, outcome.ttft, outcome.cached, outcome.prompt, strict=True)
    found = {at: Played(ttft, cached, prompt) for at, ttft, cached, prompt in columns}
    utilisation = outcome.summary().utilisation
    print(f"lab, {policy}: utilisation {utilisation:.2f}", file=sys.stderr)
    return [found[turn.at] for turn in turns]


def compared(policy: str, plays: Sequence[tuple[list[Played], list[Played]]]) -> dict[str, float]:
    """The figures of all seeds' (real, lab) plays under one policy."""
    real, lab = ([Figures.of(play[side]) for play in plays] for side in (0, 1))
    real_mean, lab_mean = Figures.mean(real), Figures.mean(lab)
    report = {}
    for name in Figures.__slots__:
        ours, theirs = getattr(real_mean, name), getattr(lab_mean, name)
        report |= {f"real_{name}": ours, f"lab_{name}": theirs, f"ratio_{name}": ours / theirs}
    ratios = [one.ttft_mean / other.ttft_mean for one, other in zip(real, lab, strict=True)]
    pairs = [pair for play in plays for pair in zip(*play, strict=True)]
    report |= {
        "ratio_ttft_mean_low": min(ratios),
        "ratio_ttft_mean_high": max(ratios),
        "off_ms_p50": median(abs(one.ttft - other.ttft) for one, other in pairs) * 1000,
        "came_late_ms_p99": float(np.quantile([one.late for one, _ in pairs], 0.99)) * 1000,
    }
    return {f"{policy}_{name}": value for name, value in report.items()}


def table(report: Mapping[str, float]) -> str:
    lines = [f"{'':34}{'sockets':>9}{'lab':>9}{'ratio':>8}"]
    for policy in POLICY:
        for name in Figures.__slots__:
            real, lab, ratio = (report[f"{policy}_{of}_{name}"] for of in ("real", "lab", "ratio"))
            lines.append(f"{policy + ' ' + name:34}{real:>9.3f}{lab:>9.3f}{ratio:>8.3f}")
        low, high, off, late = (
            report[f"{policy}_{name}"]
            for name in (
                *("ratio_ttft_mean_low", "ratio_ttft_mean_high"),
                *("off_ms_p50", "came_late_ms_p99"),
            )
        )
        lines.append(f"{policy}: of single seeds {low:.3f} to {high:.3f};")
        lines.append(f"  a request's two TTFTs are {off:.1f} ms apart (median);")
        lines.append(f"  the client was {late:.1f} ms late (p99)")
    lines.append(f"{report['requests']:.0f} requests")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=100.0)
    options = parser.parse_args()
    seconds, seeds = (6.0, 1) if options.quick else (options.seconds, options.seeds)
    plays: dict[str, list[tuple[list[Played], list[Played]]]] = {policy: [] for policy in POLICY}
    requests = 0
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        turns = Writer(ENGINE, seed).turns(seconds, CONVERSATIONS_PER_S)
        requests += len(turns)
        for policy in POLICY:
            pair = at_the_sockets(turns, policy), in_the_lab(turns, policy)
            plays[policy].append(pair)
            means = " and ".join(f"{Figures.of(one).ttft_mean:.3f} s" for one in pair)
            print(f"seed {seed}, {policy}: {len(turns)} requests, {means}", file=sys.stderr)
    report = {"requests": float(requests)}
    for policy in POLICY:
        report |= compared(policy, plays[policy])
    print(json.dumps(report) if options.json else table(report))


if __name__ == "__main__":
    main()
