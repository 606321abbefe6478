"""The embedded log: one process, no service; what is appended is folded before `append` returns."""

from collections import deque
from collections.abc import Sequence

from extproc.index import Fact
from extproc.log.interface import Follower, LogClosedError, Record


class MemoryLog:
    """A `FactLog` that keeps nothing: its followers are its memory, so they follow before it grows.

    A fact that is appended while another is being folded waits its turn: followers see records in
    order, each once, also when several writers interleave.
    """

    def __init__(self) -> None:
        self._followers: list[Follower] = []
        self._revision = 0
        self._written = 0
        self._waiting: deque[Record] = deque()
        self._folding = False
        self._closed = False

    @property
    def revision(self) -> int:
        """Place of the last record that was folded."""
        return self._revision

    def append(self, facts: Sequence[Fact]) -> int:
        """Fold the facts at once. O(followers × facts). Raises LogClosedError after `close`."""
        if self._closed:
            raise LogClosedError("the fact log is closed")
        self._written += 1
        self._waiting.append(Record(self._written, self._written, tuple(facts)))
        if not self._folding:
            self._fold()
        return self._written

    def follow(self, follower: Follower) -> None:
        """Give this follower every record. Raises ValueError once there are records it missed."""
        if self._written:
            raise ValueError("the memory log keeps no records: follow it before the first append")
        self._followers.append(follower)

    async def open(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Refuse further facts."""
        self._closed = True

    def _fold(self) -> None:
        self._folding = True
        try:
            while self._waiting:
                record = self._waiting.popleft()
                self._revision = record.revision
                for follower in self._followers:
                    follower.fold(record)
        finally:
            self._folding = False
