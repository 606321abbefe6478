"""KV-cache events: what engines say of their own caches, as facts (docs/events.md)."""

from extproc.engines.events.fold import Fold
from extproc.engines.events.wire import (
    END,
    AllCleared,
    Batch,
    Event,
    Message,
    Removed,
    Stored,
    decode_batch,
    read_frames,
    split,
)

__all__ = [
    "END",
    "AllCleared",
    "Batch",
    "Event",
    "Fold",
    "Message",
    "Removed",
    "Stored",
    "decode_batch",
    "read_frames",
    "split",
]
