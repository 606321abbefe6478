"""Whether turns came home, in one sentence."""

from collections.abc import Sequence

from extproc.demo.player import Turn
from extproc.demo.report import Report

HOME_SHARE = 0.9
"""A turn came home if so much of the full blocks of the prompt before it was cached."""


def judge(turns: Sequence[Turn], block_size: int, report: Report) -> bool:
    """Print the last sentence about these turns; whether every later one came home."""
    lost = lost_turns(turns, block_size)
    report.verdict(not lost, _sentence(turns, lost))
    return not lost


def lost_turns(turns: Sequence[Turn], block_size: int) -> list[tuple[Turn, int]]:
    """Later turns that did not come home, each with the tokens that it could have hit.

    Those are the full blocks of the prompt of the turn before; the answer before is left out.
    """
    by_place = {(turn.conversation, turn.number): turn for turn in turns}
    lost = []
    for turn in turns:
        before = by_place.get((turn.conversation, turn.number - 1))
        if before is not None:
            possible = before.prompt_tokens // block_size * block_size
            if turn.cached_tokens < HOME_SHARE * possible:
                lost.append((turn, possible))
    return lost


def _sentence(turns: Sequence[Turn], lost: Sequence[tuple[Turn, int]]) -> str:
    later = sum(turn.number > 1 for turn in turns)
    if not lost:
        return (
            f"Every turn came home: each of the {later} later turns found at least "
            f"{HOME_SHARE:.0%} of the prompt before it in the cache."
        )
    turn, possible = lost[0]
    return (
        f"{len(lost)} of {later} later turns did not come home, the first of them turn "
        f"{turn.number} of “{turn.conversation}”: {turn.cached_tokens:,} of {possible:,} tokens "
        f"cached on {turn.served}."
    )
