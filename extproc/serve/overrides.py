"""What an operator's header asks of one request's pick: to see, to debug, to keep away.

    x-operator-routing: instance=gpu-a
    x-operator-routing: avoid=gpu-b, avoid=10.0.0.9:8000, wait_weight=0.2, wait=off

It narrows what the proxy and the pool's health allow, and never goes beyond it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from extproc import config
from extproc.engines import Instance

MOST_ENTRIES = 16


@dataclass(frozen=True, slots=True)
class Override:
    """instance: to be picked; avoid: not to be picked; names or endpoints. wait_weight: in place of
    the priority's. waits: whether it may wait here. bad: entries that say nothing known."""

    instance: str = ""
    avoid: tuple[str, ...] = ()
    wait_weight: float | None = None
    waits: bool = True
    bad: int = 0

    def narrowed(self, candidates: Sequence[Instance]) -> Sequence[Instance]:
        """The candidates that it leaves; all of them where it would leave none."""
        left = [one for one in candidates if not {one.id, one.endpoint} & set(self.avoid)]
        if self.instance:
            left = [one for one in left if self.instance in (one.id, one.endpoint)]
        return left or candidates

    def outcome(self, picked: Instance | None) -> str:
        """`applied`, `bad` where some of it was not understood, `unmet` where it could not be done.

        picked: the instance that the request goes to.
        """
        if self.bad:
            return "bad"
        names = {picked.id, picked.endpoint} if picked is not None else set()
        met = not names & set(self.avoid) and (not self.instance or self.instance in names)
        return "applied" if met else "unmet"


NOTHING: Final = Override()


def override_of(pool: config.Pool, headers: Mapping[str, str]) -> Override:
    """What the header says; `NOTHING` where there is none, or none is listened to."""
    if pool.override_header is None:
        return NOTHING
    text = headers.get(pool.override_header.lower(), "").strip()
    return _parse(text) if text else NOTHING


def _parse(text: str) -> Override:
    found = NOTHING
    for number, entry in enumerate(text.split(",")):
        key, _, value = (part.strip() for part in entry.partition("="))
        match key:
            case _ if number >= MOST_ENTRIES or not value:
                found = replace(found, bad=found.bad + 1)
            case "instance":
                found = replace(found, instance=value)
            case "avoid":
                found = replace(found, avoid=(*found.avoid, value))
            case "wait_weight" if (weight := _weight(value)) is not None:
                found = replace(found, wait_weight=weight)
            case "wait" if value == "off":
                found = replace(found, waits=False)
            case _:
                found = replace(found, bad=found.bad + 1)
    return found


def _weight(value: str) -> float | None:
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if 0 < weight <= 1 else None
