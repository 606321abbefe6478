"""What an experiment answers, and what it needs to see of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from extproc.replay.baselines import BASELINES
from extproc.replay.router import LabTurn, LabView
from extproc.routing import POLICIES, Policy, PoolView, Ranking, Turn

ALL: Mapping[str, Callable[[], Policy]] = {**POLICIES, **BASELINES}

SEED = 300
"""The first of the experiments' own seeds: no parameter was chosen on these (docs/policy.md)."""


Rows = dict[str, dict[str, float]]
"""What was compared, mostly a policy → figure → number."""


@dataclass(frozen=True, slots=True)
class Result:
    """shown: figure → head of its column in the page, in order. draw: makes the plot."""

    rows: Rows
    shown: dict[str, str]
    draw: Callable[[], Figure]

    def figures(self, experiment: str) -> dict[str, float]:
        """All numbers, flat."""
        return {
            f"{experiment}_{row}_{figure}": value
            for row, figures in self.rows.items()
            for figure, value in figures.items()
        }

    def table(self) -> str:
        """The figures that are shown, as Markdown."""
        lines = ["| |" + "".join(f" {head} |" for head in self.shown.values())]
        lines.append("|---|" + "---|" * len(self.shown))
        for row, figures in self.rows.items():
            cells = (shown(figures[figure]) if figure in figures else "" for figure in self.shown)
            lines.append(f"| {row} |" + "".join(f" {cell} |" for cell in cells))
        return "\n".join(lines)


def shown(value: float) -> str:
    """Three digits that count, all of those before the point; whole numbers as they are."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(slots=True)
class Watched:
    """A policy of which is noted what it saw: tokens that each instance held, every so often."""

    policy: Policy
    every_s: float
    at: list[float] = field(default_factory=list)
    held: list[list[int]] = field(default_factory=list)

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """As the policy."""
        assert isinstance(turn, LabTurn)
        if not self.at or turn.at >= self.at[-1] + self.every_s:
            self.at.append(turn.at)
            views = (view for view in pool.instances if isinstance(view, LabView))
            self.held.append([view.held_tokens for view in views])
        return self.policy.rank(turn, pool)
