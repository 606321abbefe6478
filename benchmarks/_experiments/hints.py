"""Hints: what would it be worth to know when a conversation comes back?

The price of a pick knows those who come later only as a rate. Here it is also told of each
conversation when its next turn comes, as a client could tell: exactly; off by a factor that is
log-normal with a standard deviation of ½ or 1, which it knows; or not at all. A pick then pays for
each turn that is expected home at the instance while this prefill would run there: the seconds that
it delays it.
"""

import bisect
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist, fmean

import matplotlib as mpl
from matplotlib.figure import Figure

from _experiments.result import SEED, Result, Rows
from _experiments.traffic import Chats
from extproc.replay.baselines import REFERENCES
from extproc.replay.formats import Mooncake
from extproc.replay.lab import Setting, replay
from extproc.replay.plots import STYLE
from extproc.replay.router import LabTurn
from extproc.replay.traffic import Request, Traffic
from extproc.routing import POLICIES, Policy, PoolView, Ranking, Score, Turn
from extproc.terms import InstanceId

TRACE = "mooncake_conversation.jsonl.gz"
SEEDS = 3
NOISE = {"told exactly": 0.0, "told within ×1.6": 0.5, "told within ×2.7": 1.0}
SHOWN = {"ttft_mean_s": "mean TTFT s", "ttft_p90_s": "p90 s", "hit": "hit ratio"}
QUANTILES = 8
REMEMBERED = 256
"""Turns to come that are remembered of an instance, soonest first."""

Returns = Mapping[tuple[int, float], float]
"""(conversation, arrival of a turn) → arrival of its next."""


@dataclass(slots=True)
class Hinted:
    """A policy whose prices are completed by what turns to come would wait."""

    policy: Policy
    returns: Returns
    noise: float
    chance: random.Random
    _quantiles: list[float] = field(init=False)
    _homes: dict[InstanceId, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        spread = [0.5] if not self.noise else [(at + 0.5) / QUANTILES for at in range(QUANTILES)]
        normal = NormalDist(0.0, self.noise or 1.0)
        self._quantiles = [math.exp(normal.inv_cdf(share)) for share in spread]

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """By the price and the delay of those who are about to come home."""
        assert isinstance(turn, LabTurn)
        scores = [
            replace(score, price_s=score.price_s + self._delay(score, turn.at))
            for score in self.policy.rank(turn, pool).scores
        ]
        best = min(scores, key=lambda score: score.cost_s)
        after = self.returns.get((turn.conversation, turn.at))
        if after is not None:
            told = (after - turn.at) * math.exp(self.chance.gauss(0.0, self.noise))
            homes = self._homes[best.instance]
            for quantile in self._quantiles:
                bisect.insort(homes, turn.at + told * quantile)
            del homes[REMEMBERED * len(self._quantiles) :]
        return Ranking((best, *(score for score in scores if score is not best)))

    def _delay(self, score: Score, now: float) -> float:
        """Seconds that turns which come home before this prefill has ended wait for it."""
        homes = self._homes[score.instance]
        del homes[: bisect.bisect_left(homes, now)]
        begins = now + score.wait_s
        ends = begins + score.prefill_s
        due = homes[: bisect.bisect_left(homes, ends)]
        return sum(ends - max(at, begins) for at in due) / len(self._quantiles)


def run(quick: bool, traces: Path | None) -> Result:
    """Replay trace A with each quality of hint."""
    runs: Rows = {}
    for seed in range(SEED, SEED + (1 if quick else SEEDS)):
        requests = list(_traffic(seed, quick, traces).arrivals())
        policies: dict[str, Policy] = {"priced, told nothing": POLICIES["priced"]()}
        for name, noise in NOISE.items():
            chance = random.Random(seed)
            policies[name] = Hinted(POLICIES["priced"](), returns(requests), noise, chance)
        policies["one cache for all (pooled)"] = REFERENCES["pooled"]()
        for name, policy in policies.items():
            setting = Setting(is_pooled=name.startswith("one cache"))
            summary = replay(_traffic(seed, quick, traces), policy, setting).summary()
            for figure in SHOWN:
                value = getattr(summary, figure.removesuffix("_s"))
                runs.setdefault(name, {})[f"{figure}_{seed}"] = value
    rows: Rows = {
        name: {
            figure: fmean(value for key, value in row.items() if key.startswith(figure))
            for figure in SHOWN
        }
        for name, row in runs.items()
    }
    return Result(rows, SHOWN, lambda: draw(rows))


def returns(requests: list[Request]) -> Returns:
    """When each turn's next one comes."""
    found: dict[tuple[int, float], float] = {}
    last: dict[int, float] = {}
    for request in requests:
        before = last.get(request.conversation)
        if before is not None:
            found[request.conversation, before] = request.at
        last[request.conversation] = request.at
    return found


def _traffic(seed: int, quick: bool, traces: Path | None) -> Traffic:
    if traces is not None and not quick:
        return Mooncake(traces / TRACE, 3.0, seed)
    chats = Chats(rate=4.0, seconds=20 if quick else 300, weights=(1.0,) * 50, first=12_000)
    return Recorded(chats.traffic(seed))


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
        figure = Figure(figsize=(8.6, 2.4), layout="constrained")
        axes = figure.subplots()
        names = list(reversed(rows))
        times = [rows[name]["ttft_mean_s"] for name in names]
        bars = axes.barh(names, times, color=["#888888"] + ["#1f77b4"] * 3 + ["black"])
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set(xlabel="mean TTFT, seconds")
        axes.grid(visible=False, axis="y")
    return figure
