"""Turns that are about to come home: told by their clients, or learnt from how they came before.

No I/O and no clock: every call is told the time.
"""

import bisect
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from extproc.routing.views import Due
from extproc.terms import InstanceId

MOST_DUE = 512
"""Times that are remembered of an instance, soonest first."""

MOST_TURNS = 10_000
"""Turns that are known again when they come; of more, those that were told of first are not."""

LONGEST_S = 600.0
"""Nothing is expected for longer."""

MOST_CLIENTS = 100_000
"""Clients whose returns are learnt; those that were silent longest are forgotten."""

SEEN = 3
"""Returns that must have been seen before one is predicted."""

CERTAIN_S, CERTAIN_SHARE = 0.5, 0.1
"""A return is predicted where those before were spread by no more than this, in seconds or as a
share of their mean: a guess that is off by more than a prefill takes is worth nothing."""

_MEMORY = 0.3
"""Weight of the latest return."""


_STEPS = (-1.34, -0.45, 0.45, 1.34)
"""Where a turn may come whose time is not certain, in standard deviations: each as likely."""


class Returns:
    """When turns come home, by instance. A hint is about one turn; what it says is not kept."""

    def __init__(self) -> None:
        self._due: dict[InstanceId, list[Due]] = {}
        self._turns: OrderedDict[Hashable, tuple[InstanceId, list[Due]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._due)

    def expect(
        self, turn: Hashable, instance: InstanceId, at: float, spread_s: float = 0.0
    ) -> None:
        """A turn whose prompt is cached there will come at this time. O(MOST_DUE).

        turn: by what it is known when it comes. spread_s: standard deviation of what is told.
        """
        self.came(turn)
        if spread_s > 0:
            times = [Due(at + step * spread_s, 1 / len(_STEPS)) for step in _STEPS]
        else:
            times = [Due(at, 1.0)]
        due = self._due.setdefault(instance, [])
        for one in times:
            bisect.insort(due, one)
        del due[MOST_DUE:]
        self._turns[turn] = instance, times
        if len(self._turns) > MOST_TURNS:
            self._turns.popitem(last=False)

    def came(self, turn: Hashable) -> bool:
        """It has come, and nobody has to wait for it any more. Whether it was expected."""
        if (known := self._turns.pop(turn, None)) is None:
            return False
        instance, times = known
        due = self._due.get(instance, [])
        for one in times:
            place = bisect.bisect_left(due, one)
            if place < len(due) and due[place] == one:
                del due[place]
        if not due:
            self._due.pop(instance, None)
        return True

    def of(self, instance: InstanceId, now: float) -> Sequence[Due]:
        """Each with the seconds from now until it comes, soonest first. What should have come is
        forgotten."""
        due = self._due.get(instance)
        if due is None:
            return ()
        del due[: bisect.bisect_left(due, (now,))]
        if not due:
            del self._due[instance]
            return ()
        return [Due(one.at - now, one.share) for one in due]


def delay_s(due: Sequence[Due], begins: float, ends: float) -> float:
    """Seconds that turns which come home wait for a prefill that runs from `begins` to `ends`.

    due: seconds from now, soonest first, as the others are. O(those that wait).
    """
    total = 0.0
    for at, share in due:
        if at >= ends:
            break
        total += share * (ends - max(at, begins))
    return total


@dataclass(slots=True)
class _Gap:
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        weight = max(_MEMORY, 1 / self.count)
        off = seconds - self.mean
        self.mean += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)

    @property
    def is_certain(self) -> bool:
        off = sqrt(self.variance)
        return self.count >= SEEN and (off <= CERTAIN_S or off <= CERTAIN_SHARE * self.mean)


@dataclass(slots=True)
class _Client:
    """ended: when the answer did that it has not come back from, 0 for none. after_tool, others:
    what follows an answer that calls a tool, and what follows one that does not."""

    ended: float = 0.0
    calls_tool: bool = False
    after_tool: _Gap = field(default_factory=_Gap)
    others: _Gap = field(default_factory=_Gap)

    @property
    def gap(self) -> _Gap:
        """What it is now in."""
        return self.after_tool if self.calls_tool else self.others


class Gaps:
    """How long each client takes from the end of an answer to its next turn.

    A tool returns when it has run and a person when they have thought: where it is known that an
    answer calls a tool, what follows is learnt by itself.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[Hashable, _Client] = OrderedDict()

    def came(self, client: Hashable, now: float) -> None:
        """A turn of the client's came."""
        known = self._clients.get(client)
        if known is None or known.ended <= 0:
            return
        seconds, known.ended = now - known.ended, 0.0
        if 0 <= seconds <= LONGEST_S:
            known.gap.add(seconds)

    def ended(self, client: Hashable, now: float, calls_tool: bool = False) -> float | None:
        """An answer to it ended: the seconds until it comes again, where that is certain."""
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client()
            if len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)
        known.ended, known.calls_tool = now, calls_tool
        self._clients.move_to_end(client)
        gap = known.gap
        return gap.mean if gap.is_certain else None
