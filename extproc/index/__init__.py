"""The prefix index: which instance holds how much of a prompt. Pure: no I/O, no clock, no chance.

Facts go in (`PrefixIndex.apply`), cached blocks per instance come out (`PrefixIndex.match`).
"""

from extproc.index.compare import Run, RunDifference, overviews_differ, rows_differ
from extproc.index.dump import Place, arrange, render
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
from extproc.index.rows import Blocks, EdgeRow, HolderRow, Overview, overview, rows
from extproc.index.scope import Bounds
from extproc.index.snapshot import FOLD_VERSION, Chunk, Edges, Head, InstanceState, Plane

__all__ = [
    "FOLD_VERSION",
    "Blocks",
    "Bounds",
    "Capacity",
    "Chunk",
    "Cleared",
    "Depths",
    "Dropped",
    "EdgeRow",
    "Edges",
    "Expired",
    "Fact",
    "Head",
    "Held",
    "HolderRow",
    "IndexStats",
    "InstanceState",
    "Joined",
    "Left",
    "Overview",
    "Place",
    "Plane",
    "PrefixIndex",
    "Run",
    "RunDifference",
    "SnapshotError",
    "Source",
    "Tier",
    "arrange",
    "overview",
    "overviews_differ",
    "render",
    "rows",
    "rows_differ",
]
