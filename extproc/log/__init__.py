"""The fact log that all replicas fold: `MemoryLog` inside one process."""

from extproc.log.interface import Apply, FactLog, LogClosedError, Reload
from extproc.log.memory import MemoryLog

__all__ = ["Apply", "FactLog", "LogClosedError", "MemoryLog", "Reload"]
