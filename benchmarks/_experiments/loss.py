"""An instance is lost, later two come: who takes the conversations, and how do new ones fill?

Eight instances with long chats of twenty tenants. One is killed, with its cache and all that it was
doing; later two empty ones join. A stampede would be conversations of the lost instance that all go
to one other, or all traffic that goes to the empty ones at once.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows
from _experiments.traffic import Chats
from extproc.replay.curves import Floats
from extproc.replay.lab import Change, Setting, replay
from extproc.replay.outcome import Outcome
from extproc.replay.plots import STYLE, looks

NAMES = ("priced", "mooncake-min-ttft", "least-tokens", "session-hash", "longest-prefix")
LOST, NEW = 0, (8, 9)
WINDOWS = 60
SHOWN = {
    "before_ttft_mean_s": "mean TTFT s before",
    "after_loss_ttft_mean_s": "in the minute after the loss",
    "after_loss_ttft_p99_s": "p99 s",
    "rehomed_most_over_mean": "re-homed conversations, most over mean",
    "after_growth_ttft_mean_s": "mean TTFT s in the minute after two came",
    "new_share_first_10s": "share of turns to the new ones, first 10 s",
    "new_ttft_mean_s": "mean TTFT s at the new ones, first two minutes",
    "new_share_later": "share two to five minutes later",
}


def run(quick: bool, _: Path | None) -> Result:
    """Replay the same loss and growth under five policies."""
    third = 20.0 if quick else 300.0
    chats = Chats(
        rate=4.0, seconds=3 * third, weights=(1.0,) * 20, first=6_000, question=600, think_s=20.0
    )
    setting = Setting(
        instances=10,
        capacity_tokens=2_000_000,
        changes=(
            *(Change(0.0, new, is_up=False) for new in NEW),
            Change(third, LOST, is_up=False),
            *(Change(2 * third, new, is_up=True) for new in NEW),
        ),
    )
    rows: Rows = {}
    outcomes: dict[str, Outcome] = {}
    for name in NAMES:
        outcome = outcomes[name] = replay(chats.traffic(SEED), ALL[name](), setting)
        rows[name] = figures(outcome, third)
    warmed = replace(setting, warm_up=tuple(chats.traffic(SEED).shared()))
    outcome = replay(chats.traffic(SEED), ALL["priced"](), warmed)
    rows["priced, with warm-up"] = figures(outcome, third)
    return Result(rows, SHOWN, lambda: draw(outcomes, third))


def figures(outcome: Outcome, third: float) -> dict[str, float]:
    """What happened before, after the loss, and after the growth."""
    at, ttft = np.frombuffer(outcome.at), np.frombuffer(outcome.ttft)
    to_new = np.isin(np.array(outcome.engine), NEW)

    def within(start: float, end: float) -> np.ndarray:
        return (at >= start) & (at < end)

    after_loss, after_growth = within(third, third + 60), within(2 * third, 2 * third + 60)
    taken = rehomed(outcome, third)
    at_new = ttft[to_new & within(2 * third, 2 * third + 120)]
    return {
        "before_ttft_mean_s": float(ttft[within(third / 2, third)].mean()),
        "after_loss_ttft_mean_s": float(ttft[after_loss].mean()),
        "after_loss_ttft_p99_s": float(np.quantile(ttft[after_loss], 0.99)),
        "rehomed_conversations": sum(taken.values()),
        "rehomed_most_over_mean": max(taken.values()) / (sum(taken.values()) / 7),
        "after_growth_ttft_mean_s": float(ttft[after_growth].mean()),
        "new_share_first_10s": float(to_new[within(2 * third, 2 * third + 10)].mean()),
        **({"new_ttft_mean_s": float(at_new.mean())} if at_new.size else {}),
        "new_share_later": float(to_new[within(2.4 * third, 3 * third)].mean()),
    }


def rehomed(outcome: Outcome, lost_at: float) -> Counter[int]:
    """Conversations whose last turn before the loss was on the lost instance, by the next one's."""
    home: dict[int, int] = {}
    taken: Counter[int] = Counter()
    turns = zip(outcome.at, outcome.conversation, outcome.engine, strict=True)
    for at, conversation, engine in sorted(turns):
        if at >= lost_at and home.get(conversation) == LOST:
            taken[engine] += 1
        home[conversation] = engine
    return taken


def draw(outcomes: dict[str, Outcome], third: float) -> Figure:
    """TTFT over time, and the share of the turns that the new instances get."""
    edges: Floats = np.linspace(0.0, 3 * third, WINDOWS + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for name, outcome in outcomes.items():
            at, look = np.frombuffer(outcome.at), looks(outcomes)[name]
            count = np.histogram(at, edges)[0]
            total = np.histogram(at, edges, weights=np.frombuffer(outcome.ttft))[0]
            upper.plot(edges[1:], total / count, label=name, **look)
            new = np.isin(np.array(outcome.engine), NEW)
            lower.plot(edges[1:], np.histogram(at[new], edges)[0] / count, **look)
        upper.set(yscale="log", title="mean TTFT, seconds")
        upper.yaxis.set_major_formatter("{x:g}")
        lower.set(xlabel="time, seconds", title="share of turns that the two new instances get")
        lower.axhline(len(NEW) / 9, color="grey", linestyle=":")
        for axes in (upper, lower):
            axes.axvline(third, color="grey", linewidth=0.8)
            axes.axvline(2 * third, color="grey", linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure
