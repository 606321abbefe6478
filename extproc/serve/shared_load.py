"""What a pool's replicas tell each other of load: requests in flight, and how engines fare."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic

from extproc.engines import Members
from extproc.engines.metrics import Reading
from extproc.routing import Assigned, Load, Outlook
from extproc.terms import InstanceId
from proto_gen.factlog_pb2 import Seen

AGAIN_S = 1.0
"""What is seen of engines is told again after this time, also where nothing has changed."""


class SharedLoad:
    """A log's `LoadParty`, with this process's clock.

    reads: whether this replica looks at an instance for all.
    """

    def __init__(
        self,
        outlook: Outlook,
        members: Members,
        reads: Callable[[InstanceId], bool],
    ) -> None:
        self._outlook = outlook
        self._ledger = outlook.ledger
        self._members = members
        self._reads = reads

    @property
    def changes(self) -> int:
        """Own requests that began or ended, and own looks at engines."""
        seen = self._members.conditions.changes
        said = self._ledger.changes + self._members.changes + seen
        return said + (int(monotonic() / AGAIN_S) if seen else 0)

    def own(self) -> Mapping[InstanceId, tuple[float, int]]:
        """What this replica has in flight."""
        return self._ledger.own(monotonic(), self._outlook.rate)

    def assigned(self) -> tuple[int, int]:
        """What this replica has assigned since it began: requests, milliseconds of prefill."""
        done = self._outlook.assigned
        return done.picks, int(done.prefill_s * 1000)

    def report(
        self,
        replica: str,
        loads: Mapping[InstanceId, tuple[float, int]] | None,
        assigned: tuple[int, int],
    ) -> None:
        """What another one has, and has assigned; or that it is gone."""
        if loads is None:
            self._outlook.assigned_by(replica, None, monotonic())
            self._ledger.forget(replica)
        else:
            picks, prefill_ms = assigned
            self._outlook.assigned_by(replica, Assigned(picks, prefill_ms / 1000), monotonic())
            told = {name: Load(*load) for name, load in loads.items()}
            self._ledger.report(replica, told, monotonic(), self._outlook.rate)

    def heard(self) -> None:
        """What did not change still holds."""
        self._ledger.heard(monotonic())

    def seen(self) -> Iterable[Seen]:
        """The engines that this replica looks at for all, where it knows how they fare."""
        now = monotonic()
        for condition in self._members.conditions.all():
            known = condition.fresh(now) or not condition.alive
            if known and self._reads(condition.instance.id):
                yield _written(condition.instance.id, condition.alive, condition.reading)

    def listed(self) -> Sequence[InstanceId] | None:
        """As the pool's discovery, or its configuration, said last."""
        members = self._members
        return [one.id for one in members.instances] if members.known else None

    def told(self, seen: Iterable[Seen]) -> None:
        """Another replica looks at these for all; what this one looks at itself it knows better."""
        now = monotonic()
        for one in seen:
            name = InstanceId(one.instance)
            if not self._reads(name):
                in_flight = self._ledger.in_flight_at(name)
                conditions = self._members.conditions
                queued = self._outlook.queued_at(name, now)
                conditions.heard(name, one.answers, _read(one), in_flight, queued, now)


def _written(name: InstanceId, answers: bool, reading: Reading | None) -> Seen:
    seen = Seen(instance=name, answers=answers)
    if reading is None:
        return seen
    seen.running, seen.waiting = _whole(reading.running, 32), _whole(reading.waiting, 32)
    seen.asleep = reading.asleep
    if reading.started is not None:
        seen.started = reading.started
    for field, bits in _COUNTS.items():
        value = getattr(reading, field)
        if value is not None:
            setattr(seen, field, _whole(value, bits))
    return seen


def _read(seen: Seen) -> Reading | None:
    if not seen.HasField("running"):
        return None
    counts = {name: getattr(seen, name) for name in _COUNTS if seen.HasField(name)}
    started = seen.started if seen.HasField("started") else None
    return Reading(seen.running, seen.waiting, asleep=seen.asleep, started=started, **counts)


def _whole(value: float, bits: int) -> int:
    return min(max(int(value), 0), (1 << bits) - 1)


_COUNTS = {
    "prompt_tokens": 64,
    "cached_tokens": 64,
    "requests": 64,
    "prefills": 64,
    "prefill_ms": 64,
    "computed_tokens": 64,
    "block_size": 32,
    "blocks": 32,
}
"""Fields of a reading, and the bits that they have in a note."""
