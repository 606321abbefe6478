"""Hints: what is it worth to know when a conversation comes back?

Three kinds of traffic, with flow control as by default. Chats (trace A): when an answer ends it is
told when the next turn comes, exactly; off by a factor that is log-normal with a standard deviation
of a fifth or of a half, which is known; or not at all. Agents: most chats are run by a tool loop
that comes back within a second, the others by people; nobody tells anything, but how regularly each
came back before is learnt, as the product does by session. Coding agents: of every four answers
three call a tool and one is read by a person; what follows calls is learnt by itself, or not.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.figure import Figure

from _experiments.result import SEED, Result, Rows
from _experiments.traffic import Chats
from extproc.config import FlowControl
from extproc.replay.baselines import REFERENCES
from extproc.replay.fleet import Blur
from extproc.replay.foretold import Foretold
from extproc.replay.formats import Mooncake
from extproc.replay.lab import Setting, replay
from extproc.replay.plots import STYLE
from extproc.replay.traffic import Request, Traffic
from extproc.routing import POLICIES

TRACE = "mooncake_conversation.jsonl.gz"
SEEDS = 3
WAIT_S = FlowControl().max_wait_s
TOLD = {
    "chats: told nothing": Blur(),
    "chats: told exactly": Blur(hints=0.0),
    "chats: told within a fifth": Blur(hints=0.2),
    "chats: told within a half": Blur(hints=0.5),
}
POOLED = "chats: one cache for all (pooled)"
LEARNT = {
    "agents: told nothing": Blur(),
    "agents: learnt": Blur(learns_returns=True),
    "agents: told exactly": Blur(hints=0.0),
}
CODING = {
    "coding: told nothing": Blur(),
    "coding: learnt": Blur(learns_returns=True),
    "coding: learnt, calls of tools by themselves": Blur(learns_returns=True, reads_calls=True),
    "coding: told exactly": Blur(hints=0.0),
}
SHOWN = {"ttft_mean_s": "mean TTFT s", "ttft_p90_s": "p90 s", "hit": "hit ratio"}


def run(quick: bool, traces: Path | None) -> Result:
    """Replay each with each quality of hint."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(SEED, SEED + (1 if quick else SEEDS)):
        for name, blur in TOLD.items():
            traffic = Foretold(_chats(seed, quick, traces), _chats(seed, quick, traces))
            runs.setdefault(name, []).append(
                _figures(traffic, Setting(max_wait_s=WAIT_S, blur=blur))
            )
        pooled = _figures(_chats(seed, quick, traces), Setting(is_pooled=True), "pooled")
        runs.setdefault(POOLED, []).append(pooled)
        for names, share in ((LEARNT, {"loops": 0.7}), (CODING, {"calls": 0.75})):
            for name, blur in names.items():
                setting = Setting(max_wait_s=WAIT_S, blur=blur)
                runs.setdefault(name, []).append(_figures(_agents(seed, quick, share), setting))
    rows: Rows = {
        name: {figure: fmean(one[figure] for one in figures) for figure in SHOWN}
        for name, figures in runs.items()
    }
    return Result(rows, SHOWN, lambda: draw(rows))


def _figures(traffic: Traffic, setting: Setting, policy: str = "priced") -> dict[str, float]:
    made = {**POLICIES, **REFERENCES}[policy]()
    summary = replay(traffic, made, setting).summary()
    return {figure: getattr(summary, figure.removesuffix("_s")) for figure in SHOWN}


def _chats(seed: int, quick: bool, traces: Path | None) -> Traffic:
    if traces is not None and not quick:
        return Mooncake(traces / TRACE, 3.0, seed)
    chats = Chats(rate=4.0, seconds=20 if quick else 300, weights=(1.0,) * 50, first=12_000)
    return Recorded(chats.traffic(seed))


def _agents(seed: int, quick: bool, share: Mapping[str, float]) -> Traffic:
    return Chats(
        rate=2.2,
        seconds=20 if quick else 600,
        weights=(1.0,) * 20,
        first=12_000,
        question=1_500,
        turns=12,
        **share,
    ).traffic(seed)


class Recorded:
    """Chats as if they had been recorded: every answer took eight seconds."""

    def __init__(self, chats: Traffic) -> None:
        self.block_size = chats.block_size
        self._chats = chats

    def arrivals(self) -> Iterator[Request]:
        """All turns by time."""
        turns = []
        for first in self._chats.arrivals():
            turn: Request | None = first
            while turn is not None:
                turns.append(turn)
                turn = self._chats.following(turn, turn.at + 8.0)
        return iter(sorted(turns, key=lambda turn: turn.at))

    def following(self, request: Request, ended: float) -> Request | None:
        """Nothing: the loop is open."""
        return None


def draw(rows: Rows) -> Figure:
    """Mean TTFT as bars."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.0), layout="constrained")
        axes = figure.subplots()
        names = list(reversed(rows))
        times = [rows[name]["ttft_mean_s"] for name in names]
        colors = {"told nothing": "#888888", "(pooled)": "black"}
        bars = axes.barh(
            names,
            times,
            color=[
                next((color for end, color in colors.items() if name.endswith(end)), "#1f77b4")
                for name in names
            ],
        )
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set(xlabel="mean TTFT, seconds")
        axes.grid(visible=False, axis="y")
    return figure
