"""Overload: more live conversations than the caches of the pool can hold together.

Agents with long chats, each of whom begins its next one when the last has ended. Beyond the pool's
capacity every turn evicts what another is about to need, and the pool computes everything again.
With admission (the product's, `extproc/routing/admission.py`) a *new* chat is refused and asks
again after five seconds; its first token is late by what it waited. Refused while the live chats,
as long as each has grown, fill the caches and the engines are busy; or, to compare, whether or not
those are.
"""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from _experiments.result import ALL, SEED, Result, Rows
from _experiments.traffic import Chats
from extproc.replay.lab import Setting, replay
from extproc.replay.plots import STYLE
from extproc.replay.traffic import Request
from extproc.routing import RETRY_S, Admission, Policy, PoolView, Ranking, Turn

AGENTS = (80, 120, 160, 200, 240)
CAPACITY = 300_000
INSTANCES = 8
HORIZON_S = 120.0
DOORS = {
    "all admitted": None,
    "until caches are full": 1.0,
    "until caches and engines are": 0.0,
}
"""Name → utilisation that admission is told at least; None where there is no admission."""

SHOWN = {
    "ttft_mean_s": "mean TTFT s",
    "ttft_mean_admitted_s": "without the wait at the door",
    "ttft_p90_s": "p90 s",
    "hit": "hit ratio",
    "turns_per_second": "turns a second",
}


@dataclass(slots=True)
class Door:
    """The product's admission before a replay; a policy too, to see how busy the pool is.

    least: as in DOORS.
    """

    policy: Policy
    least: float | None
    admission: Admission = field(default_factory=lambda: Admission(HORIZON_S))
    waited_s: float = 0.0
    _utilisation: float = 0.0

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """As the policy."""
        self._utilisation = pool.utilisation
        return self.policy.rank(turn, pool)

    def refuse_s(self, request: Request, now: float) -> float:
        """Seconds until it may ask again, if there is no room."""
        keys, tokens = request.keys, request.tokens
        if self.least is not None:
            busy = max(self._utilisation, self.least)
            if not self.admission.admits(keys, tokens, INSTANCES * CAPACITY, busy, now):
                return RETRY_S
            self.admission.placed(keys, tokens, now)
        self.waited_s += now - request.at
        return 0.0


def run(quick: bool, _: Path | None) -> Result:
    """Replay more and more agents, with admission and without."""
    seconds = 60.0 if quick else 900.0
    rows: Rows = {}
    agents = AGENTS[1::3] if quick else AGENTS
    for count in agents:
        chats = Chats(
            rate=count / seconds * 10,
            seconds=seconds,
            weights=(1.0,) * 20,
            first=8_000,
            question=1_500,
            answer=500,
            turns=12.0,
            agents=count,
        )
        for name, least in DOORS.items():
            door = Door(ALL["priced"](), least)
            setting = Setting(INSTANCES, CAPACITY, door=door.refuse_s)
            outcome = replay(chats.traffic(SEED), door, setting)
            summary = outcome.summary()
            first_tokens = np.frombuffer(outcome.at) + np.frombuffer(outcome.ttft)
            counted = (first_tokens > seconds / 3) & (first_tokens < seconds)
            rows[f"{count} agents, {name}"] = {
                "ttft_mean_s": summary.ttft_mean,
                "ttft_mean_admitted_s": summary.ttft_mean - door.waited_s / summary.requests,
                "ttft_p90_s": summary.ttft_p90,
                "hit": summary.hit,
                "turns_per_second": float(counted.sum()) / (seconds * 2 / 3),
            }
    return Result(rows, SHOWN, lambda: draw(rows, agents))


def draw(rows: Rows, agents: tuple[int, ...]) -> Figure:
    """TTFT, and turns a second, against the agents."""
    titles = {
        "ttft_mean_s": "mean TTFT with the wait, seconds",
        "ttft_p90_s": "p90, seconds",
        "turns_per_second": "turns a second",
    }
    colours = dict(zip(DOORS, ("tab:orange", "tab:blue", "black"), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        for axes, (column, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            for name, colour in colours.items():
                points = [rows[f"{count} agents, {name}"][column] for count in agents]
                axes.plot(agents, points, color=colour, marker=".", label=name)
            axes.set(xlabel="agents", title=title, ylim=(0, None))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
