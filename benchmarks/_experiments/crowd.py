"""A hot shared prefix: does it get as many holders as its demand needs?

Chats keep the pool a third busy. Then a crowd comes, each with a question of its own about the one
document that nobody has yet, at 2 to 60 questions a second. What their questions alone take in
prefill seconds a second is the least number of instances that can hold the document.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows
from _experiments.traffic import BLOCK, Chats, ChatTraffic
from extproc.replay.engine import EngineModel
from extproc.replay.lab import Setting, replay
from extproc.replay.outcome import Outcome
from extproc.replay.plots import STYLE, looks
from extproc.replay.traffic import Request, packed

NAMES = ("priced", "mooncake-min-ttft", "least-tokens", "session-hash", "longest-prefix")
RATES = (2, 10, 20, 40, 60)
SEEDS = 2
DOCUMENT, QUESTION = 20_000, 1_000
FIGURES = {
    "holders": "holders",
    "crowd_ttft_mean_s": "mean TTFT s of the crowd",
    "ttft_mean_s": "of all",
}
CROWD = 1 << 40
"""Conversations from here on are the crowd's."""


@dataclass(slots=True)
class Crowd:
    """Chats, and from `start` a crowd of `rate` questions a second for `seconds`."""

    chats: ChatTraffic
    rate: float
    start: float
    seconds: float
    seed: int
    block_size: int = BLOCK

    def arrivals(self) -> Iterator[Request]:
        """Both by time."""
        return heapq.merge(self.chats.arrivals(), self._crowd(), key=lambda request: request.at)

    def following(self, request: Request, ended: float) -> Request | None:
        """The chats' next turns; a question of the crowd has none."""
        return None if request.conversation >= CROWD else self.chats.following(request, ended)

    def _crowd(self) -> Iterator[Request]:
        chance = random.Random(self.seed)
        at, number = self.start, 0
        tokens, shared = DOCUMENT + QUESTION, DOCUMENT // BLOCK
        while (at := at + chance.expovariate(self.rate)) < self.start + self.seconds:
            number += 1
            ids = np.arange(tokens // BLOCK, dtype="<u8") + np.uint64(1 << 60)
            ids[shared:] += np.uint64(number << 24)
            keys = packed(ids)
            yield Request(at, CROWD + number, 0, keys, tokens, 200, keys)


def run(quick: bool, _: Path | None) -> Result:
    """A crowd of every size under every policy."""
    seconds = 10.0 if quick else 60.0
    chats = Chats(rate=6.0, seconds=2 * seconds, weights=(1.0,) * 20)
    model = EngineModel()
    rates = RATES[1::2] if quick else RATES
    need = [rate * model.prefill_s(QUESTION, 0, 0) for rate in rates]
    rows: Rows = {name: {} for name in NAMES}
    for name in NAMES:
        for rate in rates:
            runs = [
                figures(
                    replay(
                        Crowd(chats.traffic(seed), rate, seconds / 2, seconds, seed),
                        ALL[name](),
                        Setting(),
                    )
                )
                for seed in range(SEED, SEED + (1 if quick else SEEDS))
            ]
            for figure in FIGURES:
                rows[name][f"{rate}qps_{figure}"] = fmean(run[figure] for run in runs)
    rows["busy with the questions alone"] = {
        f"{rate}qps_holders": instances for rate, instances in zip(rates, need, strict=True)
    }
    heads = {
        f"{rate}qps_{figure}": f"{head}, {rate}/s"
        for figure, head in FIGURES.items()
        for rate in rates[1::2]
    }
    return Result(rows, heads, lambda: draw(list(rates), need, rows))


def figures(outcome: Outcome) -> dict[str, float]:
    """What became of the crowd."""
    mine, ttft = np.array(outcome.conversation) >= CROWD, np.frombuffer(outcome.ttft)
    return {
        "holders": len(set(np.array(outcome.engine)[mine].tolist())),
        "crowd_ttft_mean_s": float(ttft[mine].mean()),
        "ttft_mean_s": float(ttft.mean()),
    }


def draw(rates: list[int], need: list[float], rows: Rows) -> Figure:
    """Holders, and TTFT, against the crowd's rate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name in NAMES:
            look, row = looks(NAMES)[name], rows[name]
            holders = [row[f"{rate}qps_holders"] for rate in rates]
            left.plot(rates, holders, marker=".", label=name, **look)
            times = [row[f"{rate}qps_crowd_ttft_mean_s"] for rate in rates]
            right.plot(rates, times, marker=".", **look)
        left.plot(rates, need, color="grey", linestyle=":", label="busy with the questions alone")
        left.set(xlabel="questions a second", title="instances that hold the document")
        left.set_ylim(0, 8.4)
        right.set(
            xlabel="questions a second", title="mean TTFT of the crowd, seconds", yscale="log"
        )
        right.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
