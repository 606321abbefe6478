"""Log lines: one a fact, to stderr, never any text of a body."""

import logging
import sys

_SEEN_LIMIT = 1_000
"""Different messages remembered; beyond it a repeated one is dropped with the new ones."""


def configure(level: str = "info") -> None:
    """Send the process's log to stderr, a line an event."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


class LogOnce:
    """Says each thing once: what goes wrong with every request must not fill the disk."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._seen: set[str] = set()

    def warning(self, key: str, message: str, *values: object) -> None:
        """Log the message the first time that `key` is seen. Counting is the caller's."""
        if key in self._seen or len(self._seen) >= _SEEN_LIMIT:
            return
        self._seen.add(key)
        self._logger.warning(message + " (logged once)", *values)
