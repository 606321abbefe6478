"""What the baselines have in common."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from extproc.replay.router import LabTurn, LabView
from extproc.routing import PoolView, Ranking, Score, Turn

Cost: TypeAlias = Callable[[LabView], float | tuple[float, ...]]


def seen(turn: Turn, pool: PoolView) -> tuple[LabTurn, Sequence[LabView]]:
    """What the lab shows beyond what a policy is promised. Raises TypeError outside the lab."""
    if not isinstance(turn, LabTurn) or not isinstance(pool.instances[0], LabView):
        raise TypeError("this policy needs what only the replay lab knows")
    return turn, pool.instances  # type: ignore[return-value]


def cheapest(turn: Turn, views: Sequence[LabView], cost: Cost) -> Ranking:
    """All views by rising cost; equal ones rotate with the turn."""
    count = len(views)
    ranked = sorted(
        enumerate(views), key=lambda entry: (cost(entry[1]), (entry[0] - turn.tiebreak) % count)
    )
    return Ranking(tuple(_unpriced(turn, view) for _, view in ranked))


def _unpriced(turn: Turn, view: LabView) -> Score:
    uncached = max((turn.tokens or 0) - view.cached_tokens, 0)
    return Score(
        view.instance,
        view.endpoint,
        view.cached_tokens,
        wait_s=view.waiting_tokens / view.prefill_rate,
        prefill_s=uncached / view.prefill_rate + view.overhead_s,
        price_s=0.0,
    )
