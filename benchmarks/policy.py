"""How good is the routing policy, beside all that are published?

Replays in virtual time (docs/replay.md), the same engines for all. Workloads (`--traces` names a
folder with the two recorded ones; without it those that need none are played):

A, A2  Mooncake's conversations (FAST'25), 8 instances of 1 M tokens, 3 and 3.6 times as fast
A3     the same, 16 instances, 7 times as fast
D      ShareGPT's lengths of turns, closed loop, 14 conversations a second, 8 x 307,328 tokens
E      llm-d's shared prefixes, cold, 40 requests a second, 8 x 307,328 tokens

For each the mean over the seeds of the mean TTFT, the 90th percentile and the hit ratio; `ratio`
is the product's mean TTFT over that of the best published policy there, `way` the share of the way
from that one to one cache for all (`pooled`). `geomean` is over the workloads. No clock is in it:
the same seeds give the same figures everywhere.

The product is played as it is by default, with flow control (requests wait at it for at most two
seconds while every engine is busy); `priced, all at once` is without, and `llm-d-sticky, waiting`
shows what it gives the best of the others.

`--robust`: the product's policy, the least tokens and the best of `RIVALS` for each of the ways to
know less, or to have other engines, that are listed in `ROBUST`, on A (or E without traces).

    python benchmarks/policy.py [--json] [--quick] [--robust] [--traces DIR] [--seeds 3]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from extproc.config import FlowControl
from extproc.replay.baselines import BASELINES, REFERENCES
from extproc.replay.engine import EngineModel
from extproc.replay.fleet import Blur
from extproc.replay.formats import Mooncake, SharedPrefix, Turns, lengths
from extproc.replay.lab import Setting, replay
from extproc.replay.traffic import Traffic
from extproc.routing import POLICIES, Policy

OURS = "priced"
AT_ONCE, RIVAL_WAITS = "priced, all at once", "llm-d-sticky, waiting"
POLICY: dict[str, Callable[[], Policy]] = {
    **POLICIES,
    AT_ONCE: POLICIES[OURS],
    **BASELINES,
    RIVAL_WAITS: BASELINES["llm-d-sticky"],
    "pooled": REFERENCES["pooled"],
}
WAITING = (OURS, RIVAL_WAITS)
MAX_WAIT_S = FlowControl().max_wait_s
FIRST_SEED = 400
"""Parameters were chosen with seeds below it."""

CONVERSATIONS, LENGTHS = "mooncake_conversation.jsonl.gz", "sharegpt_turns.jsonl.gz"
PROCESSES = 2


@dataclass(frozen=True)
class Workload:
    """trace: the file that it needs, if any."""

    make: Callable[[Path, int], Traffic]
    setting: Setting
    trace: str | None = None


MANY = Setting(8, 307_328)
WORKLOADS = {
    "A": Workload(lambda file, seed: Mooncake(file, 3.0, seed), Setting(8), CONVERSATIONS),
    "A2": Workload(lambda file, seed: Mooncake(file, 3.6, seed), Setting(8), CONVERSATIONS),
    "A3": Workload(lambda file, seed: Mooncake(file, 7.0, seed), Setting(16), CONVERSATIONS),
    "D": Workload(lambda file, seed: Turns(lengths(file), seed=seed), MANY, LENGTHS),
    "E": Workload(lambda _, seed: SharedPrefix(seed=seed), MANY),
}
QUICK = {"E": Workload(lambda _, seed: SharedPrefix(requests=300, seed=seed), MANY)}

_SLOW = EngineModel(prefill_rate=1_600.0)
_UNEVEN = {
    number: EngineModel(prefill_rate=rate) for number, rate in enumerate((8_000.0, 24_000.0) * 4)
}
_OFF = {
    number: EngineModel(prefill_rate=16_000.0 / (1.0 + off))
    for number, off in enumerate((-0.5, 0.36, 0.21, -0.21, 0.07, -0.07, 0.5, -0.36))
}
"""They take so much longer for a prefill than the router believes, or less."""


@dataclass(frozen=True)
class Doubt:
    """A change of the setting, and of the rate (`speed`) that it is played at."""

    change: dict[str, Any] = field(default_factory=dict)
    speed: float = 3.0


ROBUST = {
    "as it is": Doubt(),
    "facts 0.5 s late": Doubt({"blur": Blur(stale_s=0.5)}),
    "equal engines believed up to 50 % off": Doubt({"blur": Blur(speed_error=0.5)}),
    "engines up to 50 % off what is believed": Doubt({"others": _OFF}),
    "the same, and their counters tell": Doubt({"others": _OFF, "blur": Blur(learns_speed=True)}),
    "30 % of the prompts unknown": Doubt({"blur": Blur(unknown_share=0.3)}),
    "prefill rates 3 times apart, learnt": Doubt(
        {"others": _UNEVEN, "blur": Blur(learns_speed=True)}
    ),
    "one instance ten times slower, learnt": Doubt(
        {"others": {3: _SLOW}, "blur": Blur(learns_speed=True)}, speed=2.5
    ),
    "3 replicas, 0.2 s late": Doubt({"blur": Blur(replicas=3, late_s=0.2)}),
    "first tokens not seen": Doubt({"sees_first_token": False}),
    "decoding slows prefills": Doubt({"engine": EngineModel(decode_slows=0.01)}, speed=2.5),
    "quadratic attention": Doubt({"engine": EngineModel(attention_s=1e-9)}, speed=2.5),
}
RIVALS = (
    *("least-tokens", "mooncake-min-ttft", "llm-d-sticky", "llm-d-default"),
    *("preble-e2", "gorgo", "lmetric"),
)
"""Published policies that are within reach on A."""

CROWD = "a crowd for one prefix, cold"
SHORT = "prompts shorter than a block"


@dataclass(frozen=True)
class Run:
    """One replay. name: of a workload, or of a doubt."""

    name: str
    policy: str
    seed: int
    traces: Path
    quick: bool


@dataclass(frozen=True)
class Figures:
    """Of one run, or their means."""

    mean: float
    p90: float
    hit: float


def play(run: Run) -> Figures:
    """In a process of its own."""
    traffic, setting = _made(run)
    setting = replace(
        setting,
        is_pooled=run.policy == "pooled",
        max_wait_s=MAX_WAIT_S if run.policy in WAITING else 0.0,
    )
    summary = replay(traffic, POLICY[run.policy](), setting).summary()
    return Figures(summary.ttft_mean, summary.ttft_p90, summary.hit)


def _made(run: Run) -> tuple[Traffic, Setting]:
    if run.name == CROWD:
        crowd = SharedPrefix(1, 5_000, 20_000, 500, 300, rate=40.0, requests=2_000, seed=run.seed)
        return crowd, MANY
    if run.name == SHORT:
        return SharedPrefix(400, 50, 0, 60, 200, rate=200.0, requests=6_000, seed=run.seed), MANY
    if run.name in ROBUST:
        doubt = ROBUST[run.name]
        if run.quick or not (run.traces / CONVERSATIONS).exists():
            return QUICK["E"].make(run.traces, run.seed), replace(MANY, **doubt.change)
        trace = Mooncake(run.traces / CONVERSATIONS, doubt.speed, run.seed)
        return trace, replace(Setting(8), **doubt.change)
    workload = (QUICK if run.quick else WORKLOADS)[run.name]
    return workload.make(run.traces / (workload.trace or ""), run.seed), workload.setting


def measured(runs: Sequence[Run]) -> dict[tuple[str, str], list[Figures]]:
    """The figures of all seeds, by name and policy."""
    found: dict[tuple[str, str], list[Figures]] = {}
    with ProcessPoolExecutor(PROCESSES) as pool:
        for run, figures in zip(runs, pool.map(play, runs), strict=True):
            print(f"{run.name}, {run.policy}, seed {run.seed}", file=sys.stderr)
            found.setdefault((run.name, run.policy), []).append(figures)
    return found


def averaged(figures: Sequence[Figures]) -> Figures:
    return Figures(
        mean(one.mean for one in figures),
        mean(one.p90 for one in figures),
        mean(one.hit for one in figures),
    )


def compared(names: Sequence[str], found: dict[tuple[str, str], list[Figures]]) -> dict[str, Any]:
    """Per workload: all policies, the best published one, and where ours stands."""
    report: dict[str, Any] = {}
    for name in names:
        policies = {policy: averaged(found[name, policy]) for policy in POLICY}
        published = {policy: policies[policy] for policy in BASELINES}
        best = min(published, key=lambda policy: published[policy].mean)
        best_p90 = min(published, key=lambda policy: published[policy].p90)
        ours, pooled = policies[OURS], policies["pooled"]
        gap = published[best].mean - pooled.mean
        ours_p90 = [one.p90 for one in found[name, OURS]]
        spread = [one.mean for one in found[name, OURS]]
        report[name] = {
            "policies": {
                policy: {"ttft_mean": one.mean, "ttft_p90": one.p90, "hit": one.hit}
                for policy, one in policies.items()
            },
            "best": best,
            "ratio": ours.mean / published[best].mean,
            "best_p90": best_p90,
            "ratio_p90": ours.p90 / published[best_p90].p90,
            "way": (published[best].mean - ours.mean) / gap if gap > 0 else None,
            "spread": stdev(spread) if len(spread) > 1 else 0.0,
            "spread_p90": stdev(ours_p90) if len(ours_p90) > 1 else 0.0,
        }
    return report


def table(report: dict[str, Any]) -> str:
    names = [name for name in report if name not in ("geomean", "seeds", "left_out")]
    lines = [f"{'TTFT mean / p90, s; hit':24}" + "".join(f"{name:>24}" for name in names)]
    for policy in POLICY:
        cells = [report[name]["policies"][policy] for name in names]
        text = [f"{c['ttft_mean']:.3f} / {c['ttft_p90']:.3f} {c['hit']:.3f}" for c in cells]
        lines.append(f"{policy:24}" + "".join(f"{cell:>24}" for cell in text))
    lines.append(f"{'best published':24}" + "".join(f"{report[n]['best']:>24}" for n in names))
    for key in ("ratio", "ratio_p90", "way", "spread", "spread_p90"):
        values = [report[name][key] for name in names]
        lines.append(
            f"{key:24}" + "".join(f"{'–' if v is None else f'{v:.3f}':>24}" for v in values)
        )
    lines.append(f"geometric mean of the ratios: {report['geomean']:.3f}")
    if report["left_out"]:
        lines.append(f"left out, without --traces: {', '.join(report['left_out'])}")
    return "\n".join(lines)


def robust_table(report: dict[str, Any]) -> str:
    lines = [
        f"{'TTFT mean, s':40}{OURS:>10}{'least-tokens':>14}{'best':>10}  best published  ratio"
    ]
    for name, one in report.items():
        lines.append(
            f"{name:40}{one[OURS]:>10.3f}{one['least-tokens']:>14.3f}{one['best_mean']:>10.3f}"
            f"  {one['best']:24}{one['ratio']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it runs")
    parser.add_argument("--robust", action="store_true", help="with less knowledge")
    parser.add_argument("--traces", type=Path, default=Path("traces"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if options.quick else options.seeds))
    workloads = QUICK if options.quick else WORKLOADS
    missing = [
        name
        for name, one in workloads.items()
        if one.trace and not (options.traces / one.trace).exists()
    ]
    names = (
        [*ROBUST, CROWD, SHORT] if options.robust else [n for n in workloads if n not in missing]
    )
    policies = [OURS, AT_ONCE, *RIVALS] if options.robust else list(POLICY)
    runs = [
        Run(name, policy, seed, options.traces, options.quick)
        for name in names
        for policy in policies
        for seed in seeds
    ]
    found = measured(runs)
    if options.robust:
        report: dict[str, Any] = {}
        for name in names:
            means = {policy: averaged(found[name, policy]).mean for policy in policies}
            best = min(RIVALS, key=lambda policy: means[policy])
            report[name] = {
                **means,
                "best": best,
                "best_mean": means[best],
                "ratio": means[OURS] / means[best],
            }
    else:
        report = compared(names, found)
        ratios = [report[name]["ratio"] for name in names]
        report["geomean"] = prod(ratios) ** (1 / len(ratios))
        report["left_out"] = missing
    report["seeds"] = list(seeds)
    if options.json:
        print(json.dumps(report))
    elif options.robust:
        del report["seeds"]
        print(robust_table(report))
    else:
        print(table(report))


if __name__ == "__main__":
    main()
