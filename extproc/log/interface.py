"""The fact log: what every replica folds, in one order.

Who owns what. The log owns the order: a record's `revision` is its place, the same on every
replica. The follower owns the index: it folds what it is given and nothing else. The writer owns a
fact only until `append` returns; after that it must not change it.

What is ordered. A follower is given whole records, each once, by rising revision, from one thread
and never from inside its own `fold`. Between `append` and the record's return the order is open:
another replica's records may come first. A writer that needs its own facts at once keeps them aside
as pending, by ticket, and drops them when a record with that ticket comes back.

What can go wrong. `append` neither waits nor raises for want of a service: the log keeps a bounded
backlog and counts what it had to leave out. A log that cannot go on from where it is (compacted
behind it, a record that cannot be read) calls `Follower.reload`: the follower forgets everything,
and the records after the call (those of a snapshot first) build it again. After `close`, `append`
raises `LogClosedError`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from extproc.errors import HomingError
from extproc.index import Fact


class LogClosedError(HomingError):
    """Facts were appended to a log after its `close`."""


class Record(NamedTuple):
    """Facts that were written together, at one place in the log."""

    revision: int
    """Place in the log: rising, not gapless. Unique per log, comparable between replicas."""
    ticket: int
    """What `append` returned for the latest of these facts; 0 where another replica wrote them."""
    facts: tuple[Fact, ...]


class Follower(Protocol):
    """Who folds the log. Neither method may raise or call back into the log."""

    def fold(self, record: Record) -> None:
        """Apply the record's facts in their order."""

    def reload(self) -> None:
        """Forget everything: the log starts over. Its records follow."""


class FactLog(Protocol):
    """The log of one pool's facts."""

    @property
    def revision(self) -> int:
        """Place of the last record that followers were given; 0 before the first."""

    def append(self, facts: Sequence[Fact]) -> int:
        """Write facts in this order; returns their ticket (rising, from 1). Never blocks.

        Raises LogClosedError after `close`.
        """

    def follow(self, follower: Follower) -> None:
        """Give this follower every record from the log's start on; before `open`, or at once."""

    async def open(self) -> None:
        """Load what there is. When it returns, followers are as warm as the log can make them."""

    async def close(self) -> None:
        """Write what is pending, within the log's own time limit, and stop. May be called twice."""
