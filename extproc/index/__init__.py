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
from extproc.index.loading import SnapshotError
from extproc.index.lookup import Depths
from extproc.index.prefix import IndexStats, PrefixIndex
from extproc.index.scope import Bounds
from extproc.index.snapshot import FOLD_VERSION, Chunk, Edges, Head, InstanceState, Plane

__all__ = [
    "FOLD_VERSION",
    "Bounds",
    "Capacity",
    "Chunk",
    "Cleared",
    "Depths",
    "Dropped",
    "EdgeDump",
    "Edges",
    "Expired",
    "Fact",
    "Head",
    "Held",
    "HolderDump",
    "IndexDump",
    "IndexStats",
    "InstanceState",
    "Joined",
    "Left",
    "Plane",
    "PrefixIndex",
    "SnapshotError",
    "Source",
    "Tier",
    "dump",
    "render",
]
