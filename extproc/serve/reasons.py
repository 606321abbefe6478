"""Why a request went where it went, for people: words and numbers, no text of the request."""

from extproc.routing import Ranking, Score
from extproc.telemetry import Attributes

MOST_INSTANCES = 16
"""That a span or a header names, best first."""


def scores(ranking: Ranking) -> str:
    """`10.0.0.1:8000=0.0123,…`: what each endpoint would cost, in seconds, best first."""
    return ",".join(f"{score.endpoint}={score.cost_s:.4f}" for score in ranking.scores)


def answer_headers(tokens: int | None, ranking: Ranking, reason: str) -> dict[str, str]:
    """What `explain` adds to an answer: why, and what each instance would have cost.

    tokens: of the prompt; None where they are not known, for the reason given.
    """
    best = ranking.best
    why = f"load ({reason})"
    if tokens is not None:
        why = f"{ranking.why}; cached={best.cached_tokens}/{tokens}; {_terms(best)}"
    return {"x-homing-why": why, "x-homing-instances": ", ".join(_each(ranking))}


def attributes(tokens: int | None, ranking: Ranking, reason: str) -> Attributes:
    """What a span says of a pick. tokens: as above."""
    best = ranking.best
    return {
        "homing.instance": best.instance,
        "homing.why": ranking.why if tokens is not None else "load",
        "homing.reason": reason,
        "homing.prompt_tokens": tokens or 0,
        "homing.cached_tokens": best.cached_tokens,
        "homing.wait_s": best.wait_s,
        "homing.prefill_s": best.prefill_s,
        "homing.price_s": best.price_s,
        "homing.instances": _each(ranking),
    }


def _each(ranking: Ranking) -> list[str]:
    return [
        f"{score.instance}: cached={score.cached_tokens}; {_terms(score)}"
        for score in ranking.scores[:MOST_INSTANCES]
    ]


def _terms(score: Score) -> str:
    return (
        f"wait={score.wait_s * 1e3:.1f}ms; prefill={score.prefill_s * 1e3:.1f}ms; "
        f"price={score.price_s * 1e3:.1f}ms"
    )
