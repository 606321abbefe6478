"""An index's digests by revision, so that replicas can be compared at a point that both passed."""

from collections import deque
from collections.abc import Callable

from extproc.index import Fact, PrefixIndex

EVERY = 16
"""Revisions that this divides are noted: the same ones on every replica. A digest costs 2 µs an
instance, a replicated log has up to 40 revisions a second from each replica."""

KEPT = 512
"""Revisions that are noted at a time: a minute of the busiest log."""


class Digests:
    """Gives an index its facts and notes what it was like between two revisions.

    revision: the log's, asked for the present one: a snapshot or a record without facts moves it
    too.
    """

    def __init__(self, index: PrefixIndex, revision: Callable[[], int]) -> None:
        self._index = index
        self._revision = revision
        self._at = 0
        self._tree = index.tree
        self._noted: deque[tuple[int, int]] = deque(maxlen=KEPT)

    def apply(self, revision: int, fact: Fact) -> None:
        """Fold one fact: the log's subscriber."""
        if revision != self._at:
            self._turn(revision)
        self._index.apply(fact)

    def reset(self) -> None:
        """The log starts over."""
        self._index.reset()
        self._noted.clear()
        self._at = 0

    def recent(self) -> list[tuple[int, int]]:
        """(revision, digest) pairs by rising revision; the last one is the present."""
        noted = list(self._noted)
        now = self._revision()
        if not self._index.backlog and now not in [at for at, _ in noted[-1:]]:
            noted.append((now, self._index.digest))
        return noted

    def _turn(self, revision: int) -> None:
        if self._index.tree is not self._tree:
            # A snapshot took the index's place: what was noted was of another.
            self._tree = self._index.tree
            self._noted.clear()
        elif self._at and self._at % EVERY == 0 and not self._index.backlog:
            self._noted.append((self._at, self._index.digest))
        self._at = revision
