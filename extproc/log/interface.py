"""The fact log: what every replica folds, in one order per pool.

Who owns what. The log owns the order: a fact's revision is its place, the same on every replica. A
subscriber owns its index: it folds what it is given and nothing else. The writer owns a fact only
until `append` returns; after that it must not change it.

What is ordered. A pool's subscribers are given every fact once, by rising revision, from one
thread; facts that were appended together stay together and share a revision. Nothing is promised
between pools, nor between `append` and a fact's return: another replica's facts may come first. A
writer that needs its own facts at once keeps them aside as pending, by ticket, and drops those that
`settled` says came back.

What can go wrong. `append` neither waits nor raises for want of a service: the log keeps a bounded
backlog and counts what it had to leave out. A log that cannot go on from where it is (compacted
behind it, a record that cannot be read) calls `reload`: the subscriber forgets everything, and the
facts after the call (those of a snapshot first) build it again. After `close`, `append` raises
`LogClosedError`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from extproc.errors import HomingError
from extproc.index import Fact

Apply: TypeAlias = Callable[[int, Fact], None]
"""Fold one fact; the number is its revision: rising, not gapless. Must not raise."""

Reload: TypeAlias = Callable[[], None]
"""Forget everything: the log starts over, its facts follow. Must not raise."""


class LogClosedError(HomingError):
    """Facts were appended to a log after its `close`."""


class FactLog(Protocol):
    """The facts of all pools, in order within each."""

    def revision(self, pool: str) -> int:
        """Place of the last fact that the pool's subscribers were given; 0 before the first."""

    def settled(self, pool: str) -> int:
        """The latest ticket of this writer whose facts the pool's subscribers were given."""

    def subscribe(self, pool: str, apply: Apply, reload: Reload | None = None) -> None:
        """Give `apply` every fact of the pool, from the log's start on.

        reload: needed for a log that may start over; one that cannot never calls it.
        """

    def append(self, pool: str, facts: Sequence[Fact]) -> int:
        """Write facts in this order; returns their ticket (rising, from 1). Never blocks.

        Raises LogClosedError after `close`.
        """

    async def open(self) -> None:
        """Load what there is. When it returns, subscribers are as warm as the log can make them."""

    async def close(self) -> None:
        """Write what is pending, within the log's own time limit, and stop. May be called twice."""
