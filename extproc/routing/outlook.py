"""What a pool's load makes of a choice: from what is in flight and learnt to what a policy sees.

The product and the replay lab use the same. No I/O and no clock: every call is told the time.
"""

from collections.abc import Iterable, Sequence
from math import exp
from typing import NamedTuple

from extproc.routing.crowds import Crowds
from extproc.routing.load import Load, LoadLedger, Ticket, Utilisation
from extproc.routing.rates import Rates, Speed
from extproc.routing.returns import Returns
from extproc.routing.views import InstanceView, PoolView
from extproc.terms import BlockKey, Endpoint, InstanceId


class Candidate(NamedTuple):
    """An eligible instance, the tokens of the prompt that it holds, and what reading those on a
    slower tier costs, in uncached tokens that take as long."""

    instance: InstanceId
    endpoint: Endpoint
    cached_tokens: int
    reload_tokens: float = 0.0


class Assigned(NamedTuple):
    """Requests placed, and the seconds of prefill that are expected of them."""

    picks: int
    prefill_s: float


class Arrivals:
    """Requests a second: an exponentially weighted mean that is right from the first on."""

    MEMORY_S = 30.0
    FIRST_S = 1.0
    """So long the first requests are taken to have come over, at least."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._at = now
        self._weight = 0.0

    def count(self, now: float, requests: float = 1.0) -> None:
        """So many came."""
        self._fade(now)
        self._weight += requests

    def per_second(self, now: float) -> float:
        """The rate as of now."""
        self._fade(now)
        seen = max(now - self._began, self.FIRST_S)
        return self._weight / (self.MEMORY_S * (1.0 - exp(-seen / self.MEMORY_S)))

    def _fade(self, now: float) -> None:
        if now > self._at:
            self._weight *= exp((self._at - now) / self.MEMORY_S)
            self._at = now


class Outlook:
    """The load of one pool's instances, and how fast they work it off.

    prior: what a prefill takes where no engine has told.
    """

    def __init__(self, prior: Speed, now: float) -> None:
        self.ledger = LoadLedger()
        self.rates = Rates(prior)
        self.utilisation = Utilisation(now)
        self.arrivals = Arrivals(now)
        self.crowds = Crowds()
        self.returns = Returns()
        self.planned: dict[InstanceId, float] = {}
        """Seconds of prefill that are to be sent to an instance before what is chosen for now."""
        self.assigned = Assigned(0, 0.0)
        """By this replica since it began."""
        self._assigned_by: dict[str, Assigned] = {}

    def start(self, instance: InstanceId, uncached: float, now: float) -> Ticket:
        """A request with so many uncached tokens was sent to the instance."""
        speed = self.rates.of(instance)
        seconds = speed.seconds(max(uncached, 0.0))
        done = self.assigned
        self.assigned = Assigned(done.picks + 1, done.prefill_s + seconds)
        self.utilisation.assign(seconds)
        self.arrivals.count(now)
        return self.ledger.start(instance, uncached, now, speed.rate, speed.overhead_s)

    def assigned_by(self, replica: str, assigned: Assigned | None, now: float) -> None:
        """Another replica has assigned so much since it began; None: it is gone.

        What it had assigned before it was first heard of is of another time.
        """
        if assigned is None:
            self._assigned_by.pop(replica, None)
            return
        before = self._assigned_by.get(replica, assigned)
        self._assigned_by[replica] = assigned
        self.arrivals.count(now, max(assigned.picks - before.picks, 0))
        self.utilisation.assign(max(assigned.prefill_s - before.prefill_s, 0.0))

    def computed(self, ticket: Ticket, now: float) -> None:
        """The request's first token was seen."""
        self.ledger.computed(ticket, now, self.rate(ticket.instance))

    def rate(self, instance: InstanceId) -> float:
        """Tokens a second that the instance prefills."""
        return self.rates.of(instance).rate

    def queued_at(self, instance: InstanceId, now: float) -> int:
        """Requests there whose prefill is not predicted to have ended."""
        return self.ledger.queued_at(instance, now, self.rate(instance))

    def loads(self, instances: Iterable[InstanceId], now: float) -> list[Load]:
        """What waits at each and is in flight there, all replicas' requests."""
        return [self.ledger.of(name, now, self.rate(name)) for name in instances]

    def view(
        self,
        candidates: Sequence[Candidate],
        loads: Sequence[Load],
        instances: int,
        now: float,
        prefix: BlockKey | None = None,
    ) -> PoolView:
        """What a policy sees of the eligible instances, the candidates.

        loads: of each of them, in their order. instances: of the whole pool. prefix: the last block
        of the longest cached prefix.
        """
        rates, planned, returns = self.rates, self.planned, self.returns
        views = [
            InstanceView(
                instance=one.instance,
                endpoint=one.endpoint,
                cached_tokens=one.cached_tokens,
                waiting_tokens=(
                    load.waiting + planned.get(one.instance, 0.0) * speed.rate
                    if planned
                    else load.waiting
                ),
                in_flight=load.in_flight,
                prefill_rate=speed.rate,
                reload_tokens=one.reload_tokens,
                overhead_s=speed.overhead_s,
                due=returns.of(one.instance, now) if returns else (),
            )
            for one, load in zip(candidates, loads, strict=True)
            for speed in (rates.of(one.instance),)
        ]
        return PoolView(
            views,
            prefill_rate=rates.mean.rate,
            utilisation=self.utilisation.at(now, instances),
            arrival_rate=self.arrivals.per_second(now) / max(instances, 1),
            overhead_s=rates.mean.overhead_s,
            waited_s=self.crowds.waited_s(prefix, now),
        )
