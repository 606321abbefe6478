"""The fact log: what every replica folds, in one order per pool.

Who owns what. The log owns the order: a fact's revision is its place, the same on every replica. A
subscriber owns its index: it folds what it is given and nothing else. The writer owns a fact only
until `append` returns; after that it must not change it.

What is ordered. A pool's subscribers are given every fact once, by rising revision, from one
thread; facts that were appended together stay together and share a revision (a replicated log may
cut a long list between two). Nothing is promised between pools, nor between `append` and a fact's
return: another replica's facts may come first. A writer that needs its own facts at once keeps them
aside as pending, by ticket, and drops those that `settled` says are over.

What can go wrong. `append` neither waits nor raises for want of a service: the log keeps a bounded
backlog and counts what it had to leave out. A log that cannot go on from where it is (compacted
behind it, another cluster) calls `reload`: the subscriber forgets everything, and a snapshot and
the facts after the call build it again. After `close`, `append` raises `LogClosedError`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from extproc.errors import HomingError, PeerViolation
from extproc.index import Fact
from extproc.terms import InstanceId
from proto_gen.factlog_pb2 import Seen

Apply: TypeAlias = Callable[[int, Fact], None]
"""Fold one fact; the number is its revision: rising, not gapless. Must not raise."""

Reload: TypeAlias = Callable[[], None]
"""Forget everything: the log starts over, its facts follow. Must not raise."""

Overhear: TypeAlias = Callable[[Sequence[Fact]], None]
"""Facts of another process. Must not raise."""

PIECE_BYTES = 512 * 1024
"""Most bytes of a snapshot's piece."""


class LogClosedError(HomingError):
    """Facts were appended to a log after its `close`."""


class BadSnapshot(PeerViolation):
    """Pieces that are no snapshot of this version, or not all of one, or damaged."""


class Snapshots(Protocol):
    """A subscriber's state as bytes, for logs that do not keep every fact.

    Both ways in steps of about 2 ms: between two the event loop does other things.
    """

    def save(self) -> Iterator[bytes]:
        """Pieces of at most PIECE_BYTES that `load` makes the same state of, digest and all.

        They show the moment when the first that is not empty comes; facts go on being folded
        between two. An empty piece is a step before that. Raises ValueError where another `save`
        is under way, HomingError where the subscriber starts over meanwhile.
        """

    def load(self, pieces: Iterable[bytes]) -> Iterator[object]:
        """Take over the state of `save`'s pieces, a step an item.

        The old state answers until the last step. Raises BadSnapshot; the state is then an empty
        one.
        """


class LoadParty(Protocol):
    """One replica's side of what the replicas of a pool tell each other of their load.

    Loads are (uncached tokens waiting, requests in flight) by instance.
    """

    @property
    def changes(self) -> int:
        """Another number when there is something new to tell."""

    def own(self) -> Mapping[InstanceId, tuple[float, int]]:
        """What this replica has in flight."""

    def assigned(self) -> tuple[int, int]:
        """Requests that this replica has placed since it began, and milliseconds of prefill that it
        expects of them."""

    def report(
        self,
        replica: str,
        loads: Mapping[InstanceId, tuple[float, int]] | None,
        assigned: tuple[int, int],
    ) -> None:
        """Another replica has this in flight, and nothing else; None: it is gone.

        assigned: by it since it began, as of `assigned` above.
        """

    def heard(self) -> None:
        """What did not change still holds: the others can be heard."""

    def seen(self) -> Iterable[Seen]:
        """How the engines fare that this replica looks at for all."""

    def listed(self) -> Sequence[InstanceId] | None:
        """The instances that this replica lists; None before it knows of any list."""

    def told(self, seen: Iterable[Seen]) -> None:
        """Another replica looks at these engines for all."""


class FactLog(Protocol):
    """The facts of all pools, in order within each."""

    def revision(self, pool: str) -> int:
        """Place of the last fact that the pool's subscribers were given; 0 before the first."""

    def settled(self, pool: str) -> int:
        """The latest ticket up to which the pool's subscribers were given all that was appended, or
        that was left out for good."""

    def secret(self, pool: str) -> bytes | None:
        """What all replicas key the pool's blocks with; None while it is not known.

        A writer then uses one of its own, and appends nothing that it hashed with that.
        """

    def warm(self, pool: str) -> bool:
        """Whether the pool's subscribers were given all that there was when the log was opened."""

    def subscribe(
        self,
        pool: str,
        apply: Apply,
        reload: Reload | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Give `apply` every fact of the pool, from the log's start on.

        reload, snapshots: needed for a log that may start over, or that keeps a snapshot; the first
        subscriber's snapshots are used for all.
        """

    def append(self, pool: str, facts: Sequence[Fact]) -> int:
        """Write facts in this order; returns their ticket (rising, from 1). Never blocks.

        Raises LogClosedError after `close`.
        """

    def share(self, pool: str, party: LoadParty) -> None:
        """Let the pool's replicas know of each other's load; alone, there is nothing to tell.

        A replica tells at most 5 times a second, and only what changed. Its load ends with it.
        """

    @property
    def grace_s(self) -> float:
        """So long nobody must have listed an instance before it may be removed."""

    def may_remove(self, pool: str, instance: InstanceId) -> bool:
        """Whether this process is the one that writes that instances have left, and no other lists
        this one, as far as is known of all of them."""

    def reads(self, pool: str, instance: InstanceId) -> bool:
        """Whether this process is the one that reads an engine's events for all replicas.

        Of those that ask one is, for as long as that is certain; when it is gone another within
        three seconds. Alone, it is always this one.
        """

    def assure(self, pool: str, instances: frozenset[InstanceId]) -> None:
        """Tell all replicas of which instances this one, which reads their events, knows all that
        they hold; those, and no others."""

    def assured(self, pool: str) -> frozenset[InstanceId]:
        """Instances of which some reader knows all that they hold, as far as is heard."""

    def overhear(self, pool: str, heard: Overhear) -> None:
        """Give `heard` the pool's facts that other processes wrote, after they were given."""

    async def open(self) -> None:
        """Load what there is, for as long as that may take.

        When it returns, subscribers are as warm as the log could make them in time.
        """

    async def close(self) -> None:
        """Write what is pending, within the log's own time limit, and stop. May be called twice."""
