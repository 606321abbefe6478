"""What the baselines have in common."""

from collections.abc import Sequence

from extproc.replay.router import LabTurn, LabView
from extproc.routing import PoolView, Turn
from extproc.routing import ranked as cheapest

__all__ = ["cheapest", "seen"]


def seen(turn: Turn, pool: PoolView) -> tuple[LabTurn, Sequence[LabView]]:
    """What the lab shows beyond what a policy is promised. Raises TypeError outside the lab."""
    if not isinstance(turn, LabTurn) or not isinstance(pool.instances[0], LabView):
        raise TypeError("this policy needs what only the replay lab knows")
    return turn, pool.instances  # type: ignore[return-value]
