"""Growth on one host: what one hot tenant does to the instance that it sticks to.

Thirty tenants, one of which has four of ten chats. What is sticky is the tenant, as with a hash of
an API key or of the system prompt; longest prefix piles it up by itself, because all its chats
begin alike.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows, Watched
from _experiments.traffic import Chats
from extproc.replay.curves import Floats, load
from extproc.replay.lab import Setting, replay
from extproc.replay.plots import STYLE

NAMES = ("session-hash", "longest-prefix", "priced")
SETTING = Setting(instances=8, capacity_tokens=1_000_000)
WEIGHTS = (40.0, *(60 / 29,) * 29)
WINDOW_S = 15.0
SHOWN = {
    "ttft_mean_s": "mean TTFT s",
    "ttft_p90_s": "p90 s",
    "hit": "hit ratio",
    "prefill_busiest_over_mean": "prefill time, busiest over mean",
    "others_cached_when_one_is_full": "cached by the others when the first cache is full",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A run's course: when it was looked, tokens cached then, and load, per instance."""

    at: list[float]
    cached: Floats
    load: Floats

    def others_when_one_is_full(self) -> float:
        """Share of their capacity that the others hold when the first holds all it can."""
        shares = np.sort(self.cached / SETTING.capacity_tokens, axis=1)
        full = np.flatnonzero(shares[:, -1] > 0.99)
        return float(shares[full[0] if len(full) else -1, :-1].mean())


def run(quick: bool, _: Path | None) -> Result:
    """Replay the tenants under three policies."""
    chats = Chats(
        rate=6.0, seconds=40 if quick else 600, weights=WEIGHTS, prefix=4_000, by_tenant=True
    )
    edges: Floats = np.arange(0.0, chats.seconds * 1.2 + 1, WINDOW_S, dtype="f8")
    rows: Rows = {}
    seen: dict[str, Seen] = {}
    for name in NAMES:
        policy = Watched(ALL[name](), WINDOW_S)
        outcome = replay(chats.traffic(SEED), policy, SETTING)
        summary = outcome.summary()
        loads = [load(outcome, engine, edges) for engine in range(SETTING.instances)]
        seen[name] = Seen(policy.at, np.array(policy.held), np.array(loads))
        rows[name] = {
            "ttft_mean_s": summary.ttft_mean,
            "ttft_p90_s": summary.ttft_p90,
            "hit": summary.hit,
            "prefill_busiest_over_mean": summary.imbalance,
            "others_cached_when_one_is_full": seen[name].others_when_one_is_full(),
        }
    return Result(rows, SHOWN, lambda: draw(seen, rows, edges))


def draw(seen: dict[str, Seen], rows: Rows, edges: Floats) -> Figure:
    """Cached tokens above, prefill below; a line an instance."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        panels = figure.subplots(2, len(seen), sharex=True, sharey="row", squeeze=False)
        for (upper, lower), (name, each) in zip(panels.T, seen.items(), strict=True):
            shown = np.array(each.at) <= edges[-1]
            upper.plot(np.array(each.at)[shown], each.cached[shown] / 1e6, linewidth=1)
            upper.axhline(SETTING.capacity_tokens / 1e6, color="grey", linestyle=":")
            upper.set_title(f"{name}: mean TTFT {rows[name]['ttft_mean_s']:.2f} s")
            lower.plot(edges[1:], each.load.T, linewidth=1)
            lower.set(xlabel="time, seconds", ylim=(0, 1.02), xlim=(0, edges[-1]))
        panels[0][0].set_ylabel("cached tokens, millions")
        panels[1][0].set_ylabel("share of time in prefill")
    return figure
