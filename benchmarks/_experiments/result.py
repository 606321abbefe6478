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


@dataclass(frozen=True, slots=True)
class Result:
    """figures: name → number, for the table and JSON. draw: makes the plot."""

    figures: dict[str, float]
    draw: Callable[[], Figure]


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
