"""The fact log that all replicas fold: `MemoryLog` inside one process, `KeptLog` with a file."""

from extproc.log.interface import (
    PIECE_BYTES,
    Apply,
    BadSnapshot,
    FactLog,
    LoadParty,
    LogClosedError,
    Overhear,
    Reload,
    Snapshots,
)
from extproc.log.kept import KeptLog
from extproc.log.memory import MemoryLog
from extproc.log.snapshot import IndexSnapshots, fingerprint

__all__ = [
    "PIECE_BYTES",
    "Apply",
    "BadSnapshot",
    "FactLog",
    "IndexSnapshots",
    "KeptLog",
    "LoadParty",
    "LogClosedError",
    "MemoryLog",
    "Overhear",
    "Reload",
    "Snapshots",
    "fingerprint",
]
