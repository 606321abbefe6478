"""The requests of a pool that wait here for their turn, and the clock that wakes them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

from extproc.routing import Choice, FlowControl, Outlook, must_wait

REST = 4.0
"""After a look at all who wait, so many times as long nobody is looked at, so that a long line in a
large pool takes no more than a fifth of the process."""

Chosen = TypeVar("Chosen", bound=Choice)
Outcome = TypeVar("Outcome")


@dataclass(slots=True, eq=False)
class _Entry(Generic[Chosen, Outcome]):
    """again: chooses anew. place: what to do with the choice when it is its turn."""

    again: Callable[[], Chosen]
    place: Callable[[Chosen], Outcome]
    future: "asyncio.Future[Outcome]"


class Line:
    """Requests wait in it while every instance is busy (`FlowControl`).

    Only where the engines tell how long their prefills take: what is waited for is a prediction.
    """

    def __init__(self, outlook: Outlook, max_wait_s: float) -> None:
        self.max_wait_s = max_wait_s
        self._rates = outlook.rates
        self._flow = FlowControl[_Entry[Any, Any]](max_wait_s, outlook.planned)
        self._timer: asyncio.TimerHandle | None = None
        self._rest_until = 0.0

    def __len__(self) -> int:
        return len(self._flow)

    def holds(self, choice: Choice) -> bool:
        """Whether a request that would be placed so has to wait."""
        if self._flow:
            return True
        return must_wait(choice.ranking) and self._rates.are_learnt

    async def wait(
        self,
        first: Chosen,
        again: Callable[[], Chosen],
        place: Callable[[Chosen], Outcome],
        undo: Callable[[Outcome], None],
    ) -> Outcome:
        """Until it is the request's turn. Raises what `again` and `place` raise.

        first: what was chosen when it came. again: the same, later. place: is called with the last.
        undo: is called with what that returned, where nobody is there to take it.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        waiting = self._flow.join(_Entry(again, place, future), first.ranking, monotonic())
        self._wake_in(0.0)
        try:
            return await future
        except asyncio.CancelledError:
            self._flow.leave(waiting)
            if future.done() and not future.cancelled() and future.exception() is None:
                undo(future.result())  # it was its turn at this very moment
            raise

    def poke(self) -> None:
        """Something has ended: somebody may go sooner than was thought."""
        if self._flow:
            self._wake_in(0.0)

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        seconds = max(seconds, self._rest_until - monotonic(), 0.0)
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._serve)

    def _serve(self) -> None:
        self._timer = None
        began = monotonic()
        for waiting, choice in self._flow.due(began, _choose):
            entry = waiting.item
            try:
                entry.future.set_result(entry.place(choice))
            except Exception as fault:
                entry.future.set_exception(fault)
        ended = monotonic()
        self._rest_until = ended + REST * (ended - began)
        if self._flow:
            self._wake_in(self._flow.wakes_at - ended)


def _choose(entry: _Entry[Any, Any]) -> Choice | None:
    """None: it needs no place any more."""
    if entry.future.done():
        return None
    try:
        chosen: Choice = entry.again()
    except Exception as fault:
        entry.future.set_exception(fault)
        return None
    return chosen
