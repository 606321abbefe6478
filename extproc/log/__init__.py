"""The fact log that all replicas fold: `MemoryLog` inside one process."""

from extproc.log.interface import FactLog, Follower, LogClosedError, Record
from extproc.log.memory import MemoryLog

__all__ = ["FactLog", "Follower", "LogClosedError", "MemoryLog", "Record"]
