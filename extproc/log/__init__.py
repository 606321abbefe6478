"""The fact log that all replicas fold: `MemoryLog` inside one process."""

from extproc.log.interface import (
    PIECE_BYTES,
    Apply,
    BadSnapshot,
    FactLog,
    LogClosedError,
    Reload,
    Snapshots,
)
from extproc.log.memory import MemoryLog

__all__ = [
    "PIECE_BYTES",
    "Apply",
    "BadSnapshot",
    "FactLog",
    "LogClosedError",
    "MemoryLog",
    "Reload",
    "Snapshots",
]
