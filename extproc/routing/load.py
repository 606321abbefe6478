"""What is in flight where: this replica's own requests, and what the others report of theirs.

No clock of its own, no I/O: every call is told the time, and somebody else carries the reports.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from extproc.terms import InstanceId

Rate: TypeAlias = Callable[[InstanceId], float]
"""Tokens a second that an instance prefills."""

FRESH_S = 5.0
"""So long after the last sign of life from the other side of the reports they count in full."""

STALE_S = 15.0
"""So long after it they count no more; in between less and less."""


_NOTHING = 1e-9
"""Share of a report's tokens below which none are left."""


class Load(NamedTuple):
    """What waits at one instance (uncached tokens) and what is in flight there (requests)."""

    waiting: float
    in_flight: int


@dataclass(slots=True, eq=False)
class Ticket:
    """One routed request, from the pick to the end of its answer.

    remaining: uncached tokens whose prefill is not predicted to have ended; 0 afterwards.
    uncached: as at its start, `at`.
    """

    instance: InstanceId
    remaining: float
    uncached: float
    at: float
    ended: bool = False


@dataclass(slots=True)
class _Queue:
    """An instance's prefills, one at a time: all replicas' in step, own ones in their order.

    unseen: own requests in their order whose first token was not seen. seen_at: when one was last.
    others, others_in_flight: the sum over the other replicas, drained up to `at`.
    scale: what is left of a token of a report that came when it was 1. round: counts how often
    everything was done; a report of an earlier one has nothing left.
    """

    tickets: deque[Ticket] = field(default_factory=deque)
    unseen: dict[Ticket, None] = field(default_factory=dict)
    seen_at: float = float("-inf")
    waiting: float = 0.0
    in_flight: int = 0
    at: float = 0.0
    others: float = 0.0
    others_in_flight: int = 0
    scale: float = 1.0
    round: int = 0

    @property
    def idle(self) -> bool:
        """Whether nobody has anything there."""
        return not self.in_flight and not self.others_in_flight and not self.others

    def advance(self, now: float, rate: float) -> None:
        """Let the prefills of the time since the last call happen."""
        budget = max(now - self.at, 0.0) * rate
        self.at = max(now, self.at)
        total = self.waiting + self.others
        if budget <= 0 or total <= 0:
            return
        # In step: who waits with more gets more done, and all are done at the same time.
        left = max(1.0 - budget / total, 0.0)
        self._finish(budget * (self.waiting / total))
        self.others *= left
        self.scale *= left
        if self.scale < _NOTHING:
            self.others, self.scale = 0.0, 1.0
            self.round += 1

    def _finish(self, budget: float) -> None:
        """Let so many own tokens be prefilled."""
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


class _Share(NamedTuple):
    """One replica's part of a queue's `others`: tokens at `scale` 1, in the queue's round."""

    tokens: float
    in_flight: int
    round: int


class LoadLedger:
    """Requests in flight and uncached tokens waiting, per instance of one pool, in all replicas.

    The first token of a streamed answer is not seen (response headers come before it), so a turn's
    uncached tokens count as waiting until the predicted end of its prefill, or until its answer
    ends, whichever comes first. Every start is matched by one end, whatever happens between: an
    instance that leaves and comes back keeps its tickets, and a ticket ends once.

    Another replica's report holds until its next one: its tokens are taken to be prefilled as own
    ones are, at the instance's one rate for all. Whoever carries the reports says by `heard` that
    what did not change still holds; without that they fade (FRESH_S, STALE_S).

    changes: counts own starts and ends, to see whether there is something new to report.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._queues: dict[InstanceId, _Queue] = {}
        self._reports: dict[str, dict[InstanceId, _Share]] = {}
        self._heard = float("-inf")

    def start(
        self,
        instance: InstanceId,
        uncached: float,
        now: float,
        rate: float,
        overhead_s: float = 0.0,
    ) -> Ticket:
        """A request was routed to the instance. uncached: tokens; rate: tokens a second.

        overhead_s: what its prefill takes beside them; waits as the tokens that take as long.
        """
        queue = self._queue(instance, now, rate)
        uncached = max(uncached, 0.0)
        ticket = Ticket(instance, uncached + overhead_s * rate, uncached, now)
        self.changes += 1
        queue.in_flight += 1
        queue.unseen[ticket] = None
        if ticket.remaining:
            queue.tickets.append(ticket)
            queue.waiting += ticket.remaining
        return ticket

    def computed(self, ticket: Ticket, now: float, rate: float) -> float | None:
        """Its first token was seen: its prefill has ended, and so have those before it.

        Returns the seconds that it took, from the end of the one before; None where that was not
        seen, or another replica's may have been between.
        """
        queue = self._queues.get(ticket.instance)
        if queue is None or ticket not in queue.unseen:
            return None
        began = max(ticket.at, queue.seen_at)
        is_next = next(iter(queue.unseen)) is ticket
        while ticket in queue.unseen:
            del queue.unseen[next(iter(queue.unseen))]
        queue.seen_at = now
        queue.advance(now, rate)
        while ticket.remaining > 0:
            head = queue.tickets.popleft()
            queue.waiting -= head.remaining
            head.remaining = 0.0
        if not queue.tickets:
            queue.waiting = 0.0
        return now - began if is_next and not queue.others_in_flight else None

    def end(self, ticket: Ticket) -> None:
        """Its answer ended, or its client went away. A second call does nothing. O(waiting)."""
        if ticket.ended:
            return
        ticket.ended = True
        self.changes += 1
        queue = self._queues[ticket.instance]
        queue.in_flight -= 1
        queue.unseen.pop(ticket, None)
        if ticket.remaining > 0:
            queue.tickets.remove(ticket)
            queue.waiting -= ticket.remaining
            ticket.remaining = 0.0
        if queue.idle:
            del self._queues[ticket.instance]

    def of(self, instance: InstanceId, now: float, rate: float) -> Load:
        """What waits at the instance and is in flight there, from all replicas."""
        queue = self._queues.get(instance)
        if queue is None:
            return Load(0.0, 0)
        queue.advance(now, rate)
        if not queue.others_in_flight:
            return Load(queue.waiting, queue.in_flight)
        trust = self._trust(now)
        return Load(
            queue.waiting + trust * queue.others,
            queue.in_flight + round(trust * queue.others_in_flight),
        )

    def in_flight_at(self, instance: InstanceId) -> int:
        """Requests in flight at the instance, all replicas'."""
        queue = self._queues.get(instance)
        return queue.in_flight + queue.others_in_flight if queue is not None else 0

    def queued_at(self, instance: InstanceId, now: float, rate: float) -> int:
        """Requests there, all replicas', whose prefill is not predicted to have ended."""
        queue = self._queues.get(instance)
        if queue is None:
            return 0
        queue.advance(now, rate)
        return len(queue.tickets) + (queue.others_in_flight if queue.others else 0)

    @property
    def in_flight(self) -> int:
        """This replica's requests in flight in the whole pool."""
        return sum(queue.in_flight for queue in self._queues.values())

    # Other replicas

    def elsewhere(self, now: float) -> int:
        """Requests that the other replicas have in flight in the whole pool, as far as is known."""
        return round(self._trust(now) * sum(q.others_in_flight for q in self._queues.values()))

    def own(self, now: float, rate: Rate) -> dict[InstanceId, Load]:
        """What this replica has to report: instances where it has something in flight."""
        report = {}
        for instance, queue in self._queues.items():
            if queue.in_flight:
                queue.advance(now, rate(instance))
                report[instance] = Load(queue.waiting, queue.in_flight)
        return report

    def report(
        self, replica: str, loads: Mapping[InstanceId, Load], now: float, rate: Rate
    ) -> None:
        """Another replica has this in flight now, and nothing else. Negative counts are none."""
        self.forget(replica)
        shares = {}
        for instance, load in loads.items():
            waiting, in_flight = max(load.waiting, 0.0), max(load.in_flight, 0)
            if in_flight:
                queue = self._queue(instance, now, rate(instance))
                queue.others += waiting
                queue.others_in_flight += in_flight
                shares[instance] = _Share(waiting / queue.scale, in_flight, queue.round)
        if shares:
            self._reports[replica] = shares
        self.heard(now)

    def forget(self, replica: str) -> None:
        """The replica has gone, and all it had in flight with it."""
        for instance, share in self._reports.pop(replica, {}).items():
            queue = self._queues[instance]
            queue.others_in_flight -= share.in_flight
            if share.round == queue.round:
                queue.others = max(queue.others - share.tokens * queue.scale, 0.0)
            if not queue.others_in_flight:
                queue.others = 0.0  # what rounding left
            if queue.idle:
                del self._queues[instance]

    def heard(self, now: float) -> None:
        """The way that reports come by works: replicas that said nothing have nothing new."""
        self._heard = max(self._heard, now)

    def _queue(self, instance: InstanceId, now: float, rate: float) -> _Queue:
        queue = self._queues.get(instance)
        if queue is None:
            queue = self._queues[instance] = _Queue(at=now)
        queue.advance(now, rate)
        return queue

    def _trust(self, now: float) -> float:
        """What the others' reports count, 1 down to 0."""
        silence = now - self._heard
        return min(max((STALE_S - silence) / (STALE_S - FRESH_S), 0.0), 1.0)


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
