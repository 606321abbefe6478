"""The embedded log: one process, no service; what is appended is folded before `append` returns."""

import secrets
from collections import deque
from collections.abc import Sequence

from extproc.index import Fact
from extproc.log.interface import (
    Apply,
    LoadParty,
    LogClosedError,
    Overhear,
    Reload,
    Snapshots,
)
from extproc.terms import InstanceId


class MemoryLog:
    """A `FactLog` that keeps nothing: a pool's subscribers are its memory, so they come first.

    A fact that is appended while another is being folded waits its turn: subscribers see the facts
    in order, each once, also when one of them appends.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Apply]] = {}
        self._folded: dict[str, int] = {}
        self._secret = secrets.token_bytes(32)
        self._assured: dict[str, frozenset[InstanceId]] = {}
        self._waiting: deque[tuple[str, int, tuple[Fact, ...]]] = deque()
        self._written = 0
        self._folding = False
        self._closed = False

    def revision(self, pool: str) -> int:
        """Place of the pool's last fact that was folded; revision and ticket are the same here."""
        return self._folded.get(pool, 0)

    def settled(self, pool: str) -> int:
        """The latest ticket that was folded."""
        return self._folded.get(pool, 0)

    def secret(self, pool: str) -> bytes | None:
        """Known from the start, another one in each process."""
        return self._secret

    def warm(self, pool: str) -> bool:
        """There is nothing to load."""
        return True

    def subscribe(
        self,
        pool: str,
        apply: Apply,
        reload: Reload | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Give `apply` the pool's facts. Raises ValueError if it missed some already."""
        if pool in self._folded:
            raise ValueError("the memory log keeps no facts: subscribe before the first append")
        self._subscribers.setdefault(pool, []).append(apply)

    def append(self, pool: str, facts: Sequence[Fact]) -> int:
        """Fold the facts at once. O(subscribers × facts). Raises LogClosedError after `close`."""
        if self._closed:
            raise LogClosedError("the fact log is closed")
        self._written += 1
        ticket = self._written
        self._waiting.append((pool, ticket, tuple(facts)))
        if not self._folding:
            self._fold()
        return ticket

    def share(self, pool: str, party: LoadParty) -> None:
        """There is nobody else."""

    @property
    def grace_s(self) -> float:
        """Nobody else lists anything."""
        return 0.0

    def may_remove(self, pool: str, instance: InstanceId) -> bool:
        """It is alone."""
        return True

    def reads(self, pool: str, instance: InstanceId) -> bool:
        """It is alone."""
        return True

    def assure(self, pool: str, instances: frozenset[InstanceId]) -> None:
        """Remember it."""
        self._assured[pool] = instances

    def assured(self, pool: str) -> frozenset[InstanceId]:
        """What was assured last."""
        return self._assured.get(pool, frozenset())

    def overhear(self, pool: str, heard: Overhear) -> None:
        """Nobody else writes."""

    async def open(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Refuse further facts."""
        self._closed = True

    def _fold(self) -> None:
        self._folding = True
        try:
            while self._waiting:
                pool, revision, facts = self._waiting.popleft()
                self._folded[pool] = revision
                for apply in self._subscribers.get(pool, ()):
                    for fact in facts:
                        apply(revision, fact)
        finally:
            self._folding = False
