"""The prefix index: which instance holds how much of a prompt. Pure: no I/O, no clock, no chance.

Facts go in (`PrefixIndex.apply`), cached blocks per instance come out (`PrefixIndex.match`).
"""

from extproc.index.dump import EdgeDump, HolderDump, IndexDump, dump, render
from extproc.index.facts import (
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Held,
    Joined,
    Left,
    Source,
    Tier,
)
from extproc.index.lookup import Depths
from extproc.index.prefix import IndexStats, PrefixIndex
from extproc.index.scope import Bounds

__all__ = [
    "Bounds",
    "Capacity",
    "Cleared",
    "Depths",
    "Dropped",
    "EdgeDump",
    "Expired",
    "Fact",
    "Held",
    "HolderDump",
    "IndexDump",
    "IndexStats",
    "Joined",
    "Left",
    "PrefixIndex",
    "Source",
    "Tier",
    "dump",
    "render",
]
