"""Notices that files have changed: by looking, which also works on network file systems and through
the links that Kubernetes swaps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

LOOK_S = 1.0
"""How often files are looked at: a few system calls."""

Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time of the last change, size: others when a file is written or replaced."""


def stamp(file: Path) -> Stamp | None:
    """Of the file that a path leads to, through any links; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class FileWatch:
    """Whether files have changed and rested since, so that none is read while it is written."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._taken = self._seen = self._stamps()

    def rested(self) -> bool:
        """True once for each change, at the second look that sees it."""
        before, self._seen = self._seen, self._stamps()
        if self._seen == self._taken or self._seen != before:
            return False
        self._taken = self._seen
        return True

    def take(self) -> None:
        """What is there now is no change."""
        self._taken = self._seen = self._stamps()

    def _stamps(self) -> list[Stamp | None]:
        return [stamp(file) for file in self._files]
