"""Locality against load: TTFT while the rate of requests rises to what the pool can do.

Trace A of docs/policy.md (a Mooncake trace) on eight instances of a million tokens, faster and
faster; chats of many tenants where no traces are given.
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows
from _experiments.traffic import Chats
from extproc.replay.formats import Mooncake
from extproc.replay.lab import Setting, replay
from extproc.replay.outcome import Summary
from extproc.replay.plots import STYLE, looks
from extproc.replay.traffic import Traffic

NAMES = ("priced", "mooncake-min-ttft", "least-tokens", "session-hash", "longest-prefix")
TRACE = "mooncake_conversation.jsonl.gz"
SPEEDS = (1.0, 1.5, 2.0, 2.5, 2.8, 3.1, 3.4, 3.7, 3.9, 4.1)
SEEDS = 2
LONGEST = 30.0
"""Seconds of TTFT that are drawn; beyond it a pool does not keep up."""

Points = dict[float, tuple[float, float, float]]
"""By requests a second: mean and p90 of TTFT, share within 5 s."""


def run(quick: bool, traces: Path | None) -> Result:
    """Replay at every rate under every policy."""
    seen: dict[str, Points] = {name: {} for name in NAMES}
    for steps in range(2 if quick else len(SPEEDS)):
        for name in NAMES:
            runs = list(_runs(name, steps, quick, traces))
            rate = float(np.mean([rate for rate, _ in runs]))
            seen[name][rate] = (
                float(np.mean([run.ttft_mean for _, run in runs])),
                float(np.mean([run.ttft_p90 for _, run in runs])),
                float(np.mean([run.within_5s for _, run in runs])),
            )
    rows: Rows = {}
    rates = sorted(seen[NAMES[0]])
    for name, points in seen.items():
        rows[name] = {"capacity_rps": capacity(points)}
        for rate, (mean, p90, _) in points.items():
            rows[name] |= {f"{rate:.1f}rps_ttft_mean_s": mean, f"{rate:.1f}rps_ttft_p90_s": p90}
    heads = {"capacity_rps": "requests/s with 90 % within 5 s"} | {
        f"{rate:.1f}rps_ttft_mean_s": f"mean TTFT s at {rate:.1f}/s" for rate in rates[1::3]
    }
    return Result(rows, heads, lambda: draw(seen))


def capacity(points: Points, share: float = 0.9) -> float:
    """Requests a second up to which that share has its first token within 5 s.

    Interpolated; the highest rate played where all are below, 0 where none is.
    """
    below = 0.0, 1.0
    for rate, (_, _, within) in sorted(points.items()):
        if within < share:
            at = below[0] + (rate - below[0]) * (below[1] - share) / (below[1] - within)
            return at if below[0] else 0.0
        below = rate, within
    return below[0]


def _runs(
    name: str, step: int, quick: bool, traces: Path | None
) -> Iterator[tuple[float, Summary]]:
    for seed in range(SEED, SEED + (1 if quick else SEEDS)):
        traffic: Traffic
        if traces is not None and not quick:
            traffic = Mooncake(traces / TRACE, SPEEDS[step], seed)
        else:
            chats = Chats(
                rate=2.5 * SPEEDS[step], seconds=30 if quick else 300, weights=(1.0,) * 50
            )
            traffic = chats.traffic(seed)
            rate = chats.rate * chats.turns
        outcome = replay(traffic, ALL[name](), Setting())
        if traces is not None and not quick:
            rate = outcome.requests / max(outcome.at)
        yield rate, outcome.summary()


def draw(seen: dict[str, Points]) -> Figure:
    """Mean and p90 against the rate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for at, (axes, title) in enumerate(zip(panels, ("mean", "p90"), strict=True)):
            for name, look in ((name, looks(seen)[name]) for name in seen):
                points = sorted(seen[name].items())
                rates = [rate for rate, _ in points]
                drawn = [values[at] for _, values in points]
                label = name if min(drawn) < LONGEST else f"{name} (beyond)"
                axes.plot(rates, drawn, label=label, **look)
            axes.set(yscale="log", xlabel="requests a second", title=f"{title} TTFT, seconds")
            axes.set_ylim(top=LONGEST)
            axes.yaxis.set_major_formatter("{x:g}")
        panels[0].legend(fontsize=8)
    return figure
