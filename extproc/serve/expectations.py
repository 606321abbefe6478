"""What picks have asserted and no event has confirmed: forgotten after a while."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from extproc.index import Expired
from extproc.terms import InstanceId, PackedKeys

MOST: Final = 65_536
"""Expectations kept; beyond them the oldest are left to the instance's capacity."""


class _Expected(NamedTuple):
    due: float
    instance: InstanceId
    keys: PackedKeys


class Expectations:
    """Of one pool. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._open: deque[_Expected] = deque()
        self.overrun = 0
        """Expectations that were let go because there were too many."""

    def add(self, instance: InstanceId, keys: PackedKeys, due: float) -> None:
        """These blocks were expected of the instance by a request that has ended.

        due: when events must have confirmed them; not before that of an earlier one.
        """
        if len(self._open) >= MOST:
            self._open.popleft()
            self.overrun += 1
        self._open.append(_Expected(due, instance, keys))

    def expired(self, now: float, live: Callable[[InstanceId], bool]) -> list[Expired]:
        """Facts for what is due, where events would have told: on instances that are `live`.

        The others' blocks are left to their capacity, as without events.
        """
        facts = []
        while self._open and self._open[0].due <= now:
            _, instance, keys = self._open.popleft()
            if live(instance):
                facts.append(Expired(instance, keys))
        return facts
