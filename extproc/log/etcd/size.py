"""How much log there is after the snapshot, and when that is too much. Sans-IO."""

from collections import deque

_GRAIN = 64 * 1024
"""Bytes of log that are counted together."""

FULL = 8
"""Times `snapshot_bytes` at which nothing more is written until there is a new snapshot."""


class LogSize:
    """Bytes of records by revision. wanted: after how many a snapshot is due."""

    def __init__(self, wanted: int) -> None:
        self.bytes = 0
        self._wanted = wanted
        self._parts: deque[tuple[int, int]] = deque()

    def add(self, revision: int, size: int) -> None:
        """A record was written at this revision, above all before."""
        self.bytes += size
        if self._parts and self._parts[-1][1] + size <= _GRAIN:
            _, before = self._parts.pop()
            size += before
        self._parts.append((revision, size))

    def cut(self, revision: int) -> None:
        """A snapshot has everything up to this revision."""
        while self._parts and self._parts[0][0] <= revision:
            self.bytes -= self._parts.popleft()[1]

    def clear(self) -> None:
        """Count from nothing."""
        self._parts.clear()
        self.bytes = 0

    @property
    def due(self) -> bool:
        """Whether it is time for a snapshot for the size alone."""
        return self.bytes >= self._wanted

    @property
    def full(self) -> bool:
        """Whether writers must wait for one."""
        return self.bytes >= FULL * self._wanted
