"""What is in flight where, as this replica knows it: no clock of its own, every call is told."""

from collections import deque
from dataclasses import dataclass, field

from extproc.terms import InstanceId


@dataclass(slots=True, eq=False)
class Ticket:
    """One routed request, from the pick to the end of its answer.

    remaining: uncached tokens whose prefill is not predicted to have ended; 0 afterwards.
    """

    instance: InstanceId
    remaining: float
    ended: bool = False


@dataclass(slots=True)
class _Queue:
    """An instance's prefills, one at a time, first come first served."""

    tickets: deque[Ticket] = field(default_factory=deque)
    waiting: float = 0.0
    in_flight: int = 0
    at: float = 0.0

    def advance(self, now: float, rate: float) -> None:
        """Let the prefills of the time since the last call happen."""
        budget = max(now - self.at, 0.0) * rate
        self.at = max(now, self.at)
        while self.tickets and budget > 0:
            head = self.tickets[0]
            done = min(head.remaining, budget)
            head.remaining -= done
            self.waiting -= done
            budget -= done
            if head.remaining <= 0:
                self.tickets.popleft()
        if not self.tickets:
            self.waiting = 0.0  # what rounding left


class LoadLedger:
    """Requests in flight and uncached tokens waiting, per instance of one pool.

    The first token of a streamed answer is not seen (response headers come before it), so a turn's
    uncached tokens count as waiting until the predicted end of its prefill, or until its answer
    ends, whichever comes first. Every start is matched by one end, whatever happens between: an
    instance that leaves and comes back keeps its tickets, and a ticket ends once.
    """

    def __init__(self) -> None:
        self._queues: dict[InstanceId, _Queue] = {}

    def start(self, instance: InstanceId, uncached: float, now: float, rate: float) -> Ticket:
        """A request was routed to the instance. uncached: tokens; rate: tokens a second."""
        queue = self._queues.setdefault(instance, _Queue(at=now))
        queue.advance(now, rate)
        ticket = Ticket(instance, max(uncached, 0.0))
        queue.in_flight += 1
        if ticket.remaining:
            queue.tickets.append(ticket)
            queue.waiting += ticket.remaining
        return ticket

    def end(self, ticket: Ticket) -> None:
        """Its answer ended, or its client went away. A second call does nothing. O(waiting)."""
        if ticket.ended:
            return
        ticket.ended = True
        queue = self._queues[ticket.instance]
        queue.in_flight -= 1
        if ticket.remaining > 0:
            queue.tickets.remove(ticket)
            queue.waiting -= ticket.remaining
            ticket.remaining = 0.0
        if not queue.in_flight:
            del self._queues[ticket.instance]

    def of(self, instance: InstanceId, now: float, rate: float) -> tuple[float, int]:
        """(waiting uncached tokens, requests in flight) of the instance."""
        queue = self._queues.get(instance)
        if queue is None:
            return 0.0, 0
        queue.advance(now, rate)
        return queue.waiting, queue.in_flight

    @property
    def in_flight(self) -> int:
        """Requests in flight in the whole pool."""
        return sum(queue.in_flight for queue in self._queues.values())


class Utilisation:
    """ρ: the share of the pool's prefill time in use, learnt as it goes.

    Every window of 10 s: `0.7·ρ + 0.3·min(0.95, prefill seconds assigned / (window · instances))`
    (the estimator that the policy was measured with, docs/policy.md).
    """

    WINDOW_S = 10.0
    CEILING = 0.95

    def __init__(self, now: float) -> None:
        self._value = 0.0
        self._assigned_s = 0.0
        self._window_start = now

    def assign(self, prefill_s: float) -> None:
        """A prefill of so many seconds was given to an instance."""
        self._assigned_s += prefill_s

    def at(self, now: float, instances: int) -> float:
        """ρ now; 0 to 0.95. Windows that passed unseen count as idle."""
        windows = int((now - self._window_start) / self.WINDOW_S)
        if windows > 0:
            share = self._assigned_s / (self.WINDOW_S * max(instances, 1))
            self._value = 0.7 * self._value + 0.3 * min(self.CEILING, share)
            self._value *= 0.7 ** (windows - 1)
            self._assigned_s = 0.0
            self._window_start += windows * self.WINDOW_S
        return self._value
