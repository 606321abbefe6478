"""Traffic of which it is known beforehand when each conversation comes back."""

from array import array
from collections.abc import Iterator
from math import nan

from extproc.replay.traffic import Request, Traffic


class Foretold:
    """An open loop whose requests have their `next_at`.

    before: the same traffic once more, read through first; 8 bytes a request and some for each
    conversation are kept of it. What depends on an answer's end is known then and needs none.
    """

    def __init__(self, before: Traffic, traffic: Traffic) -> None:
        self.block_size = traffic.block_size
        self._before = before
        self._traffic = traffic

    def arrivals(self) -> Iterator[Request]:
        """By rising time."""
        nexts = array("d")
        latest: dict[int, int] = {}
        for number, request in enumerate(self._before.arrivals()):
            before = latest.get(request.conversation)
            if before is not None:
                nexts[before] = request.at
            latest[request.conversation] = number
            nexts.append(nan)
        latest.clear()
        for request, at in zip(self._traffic.arrivals(), nexts, strict=True):
            request.next_at = at if at == at else None  # nan is unequal to itself
            yield request

    def following(self, request: Request, ended: float) -> Request | None:
        """As it is."""
        return self._traffic.following(request, ended)
