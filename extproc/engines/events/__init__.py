"""KV-cache events: what engines say of their own caches, as facts (docs/events.md)."""

from extproc.engines.events.address import Address
from extproc.engines.events.fold import Fold, Root
from extproc.engines.events.reader import EventReader, Subscription
from extproc.engines.events.stream import Stream
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
    "Address",
    "AllCleared",
    "Batch",
    "Event",
    "EventReader",
    "Fold",
    "Message",
    "Removed",
    "Root",
    "Stored",
    "Stream",
    "Subscription",
    "decode_batch",
    "read_frames",
    "split",
]
