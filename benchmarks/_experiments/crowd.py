"""A hot shared prefix: does it get as many holders as its demand needs?

Chats keep the pool a third busy. Then a crowd comes, each with a question of its own about the one
document that nobody has yet, at 2 to 60 questions a second. What their questions alone take in
prefill seconds a second is the least number of instances that can hold the document.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows
from _experiments.traffic import BLOCK, Chats, ChatTraffic
from extproc.replay.engine import EngineModel
from extproc.replay.lab import Setting, replay
from extproc.replay.plots import STYLE, looks
from extproc.replay.traffic import Request, packed

NAMES = ("priced", "mooncake-min-ttft", "least-tokens", "session-hash", "longest-prefix")
RATES = (2, 5, 10, 20, 30, 45, 60)
DOCUMENT, QUESTION = 20_000, 1_000
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


def run(quick: bool) -> Result:
    """A crowd of every size under every policy."""
    seconds = 10.0 if quick else 120.0
    chats = Chats(rate=6.0, seconds=2 * seconds, weights=(1.0,) * 20)
    model = EngineModel()
    rates = RATES[1::3] if quick else RATES
    need = [rate * model.prefill_s(QUESTION, 0, 0) for rate in rates]
    holders: dict[str, list[int]] = {name: [] for name in NAMES}
    ttft: dict[str, list[float]] = {name: [] for name in NAMES}
    rows: Rows = {name: {} for name in NAMES}
    for name in NAMES:
        for rate in rates:
            traffic = Crowd(chats.traffic(SEED), rate, seconds / 2, seconds, SEED)
            outcome = replay(traffic, ALL[name](), Setting())
            mine = np.array(outcome.conversation) >= CROWD
            engines = np.array(outcome.engine)[mine]
            holders[name].append(len(set(engines.tolist())))
            ttft[name].append(float(np.frombuffer(outcome.ttft)[mine].mean()))
            rows[name][f"{rate}qps_holders"] = holders[name][-1]
            rows[name][f"{rate}qps_ttft_mean_s"] = ttft[name][-1]
    rows["busy with the questions alone"] = {
        f"{rate}qps_holders": instances for rate, instances in zip(rates, need, strict=True)
    }
    heads = {
        f"{rate}qps_{figure}": f"{head}, {rate}/s"
        for figure, head in (("holders", "holders"), ("ttft_mean_s", "mean TTFT s"))
        for rate in rates[1::2]
    }
    return Result(rows, heads, lambda: draw(list(rates), need, holders, ttft))


def draw(
    rates: list[int], need: list[float], holders: dict[str, list[int]], ttft: dict[str, list[float]]
) -> Figure:
    """Holders, and TTFT, against the crowd's rate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name in holders:
            left.plot(rates, holders[name], marker=".", label=name, **looks(holders)[name])
            right.plot(rates, ttft[name], marker=".", **looks(holders)[name])
        left.plot(rates, need, color="grey", linestyle=":", label="busy with the questions alone")
        left.set(xlabel="questions a second", title="instances that hold the document")
        left.set_ylim(0, 8.4)
        right.set(
            xlabel="questions a second", title="mean TTFT of the crowd, seconds", yscale="log"
        )
        right.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
