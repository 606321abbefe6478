"""Turns that wait here while every instance is busy. No I/O, no clock.

An engine serves its queue in its own order, and a turn that is sent there has to stay. What waits
at Homing instead is placed when there is something to place it on: the shortest prefill first, and
by what is known then. A short later turn so comes before a long new prompt that arrived earlier.
While any instance is free nothing waits here, not even a turn that would rather queue at a busy
one: a long prompt would be overtaken there again and again, where it could have begun elsewhere.

Source of the order: Smith, "Various optimizers for single-stage production" (1956): weight over
processing time minimises the weighed sum of waits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from extproc.routing.views import Ranking
from extproc.terms import InstanceId

LEAD_S = 0.05
"""An instance counts as free so long before it is predicted to be: what it takes to reach the
engine and be tokenized there must not leave it idle."""

MOST_WAITING = 32
"""Turns that wait at most; beyond them the one that has waited longest goes."""

_SOON_S = 0.002
"""Nothing is looked at again sooner."""


class Choice(Protocol):
    """What was chosen for a turn, and may be placed."""

    @property
    def ranking(self) -> Ranking:
        """Best first."""


Item = TypeVar("Item")
Chosen = TypeVar("Chosen", bound=Choice)


def must_wait(ranking: Ranking) -> bool:
    """Whether every instance is busy for longer than it takes to get there. O(instances)."""
    return all(score.wait_s > LEAD_S for score in ranking.scores)


@dataclass(slots=True, eq=False)
class Waiting(Generic[Item]):
    """A turn that waits.

    since: seconds. work_s: its prefill at the best instance, by its weight. free_at: when the first
    instance is predicted to be free.
    """

    item: Item
    since: float
    work_s: float
    free_at: float


class FlowControl(Generic[Item]):
    """The turns of a pool that wait at this replica.

    max_wait_s: none waits longer; whoever has goes where the policy says, free or not. planned:
    seconds of prefill by instance that are not sent yet but come before the turn that is being
    chosen for; whoever chooses is to count them as waiting there (`Outlook.planned`). Without them
    all would plan to go to the one that is free first.
    """

    def __init__(self, max_wait_s: float, planned: dict[InstanceId, float]) -> None:
        self.max_wait_s = max_wait_s
        self._planned = planned
        self._line: list[Waiting[Item]] = []

    def __len__(self) -> int:
        return len(self._line)

    @property
    def wakes_at(self) -> float:
        """When `due` must be asked again even if nothing else has changed; infinity: never."""
        return min(
            (min(one.free_at, one.since + self.max_wait_s) for one in self._line),
            default=float("inf"),
        )

    def join(self, item: Item, ranking: Ranking, now: float) -> Waiting[Item]:
        """A turn waits, as it `must`, or because others do. Ask `due` at once: somebody may go."""
        waiting = Waiting(item, now, 0.0, 0.0)
        _note(waiting, ranking, now)
        self._line.append(waiting)
        return waiting

    def leave(self, waiting: Waiting[Item]) -> None:
        """Its client went away."""
        if waiting in self._line:
            self._line.remove(waiting)

    def due(
        self, now: float, choose: Callable[[Item], Chosen | None]
    ) -> Iterator[tuple[Waiting[Item], Chosen]]:
        """Those whose turn it is. Each is to be placed before the next is asked for.

        choose: by what is known now, what is placed since and what is planned included; None
        for one that has gone. O(waiting) choices.
        """
        planned = self._planned
        self._line.sort(key=lambda one: one.work_s)
        oldest = sorted(self._line, key=lambda one: one.since)
        too_many = oldest[: max(len(oldest) - MOST_WAITING, 0)]
        try:
            for waiting in tuple(self._line):
                choice = choose(waiting.item)
                if choice is None:
                    self.leave(waiting)
                    continue
                best = choice.ranking.best
                is_late = now >= waiting.since + self.max_wait_s or waiting in too_many
                if is_late or not must_wait(choice.ranking):
                    self._line.remove(waiting)
                    yield waiting, choice
                else:
                    _note(waiting, choice.ranking, now)
                    planned[best.instance] = planned.get(best.instance, 0.0) + best.prefill_s
        finally:
            planned.clear()


def _note(waiting: Waiting[Item], ranking: Ranking, now: float) -> None:
    best = ranking.best
    waiting.work_s = best.prefill_s / max(best.wait_weight, 1e-9)
    soonest = min(score.wait_s for score in ranking.scores)
    waiting.free_at = now + max(soonest - LEAD_S, _SOON_S)
