"""An engine's side of KV-cache events, in every encoding that engines have had."""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings

from extproc.engines.events import Batch, Event, decode_batch

FIELDS = {
    "BlockStored": [
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
        "kv_cache_spec_sliding_window",
        "locality",
        "ownership",
        "session_id",
    ],
    "BlockRemoved": ["block_hashes", "medium", "group_idx", "locality", "ownership"],
    "AllBlocksCleared": [],
}
"""vLLM 0.32's, in their order."""

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines that are busy with other things."""

CLEARED = {"type": "AllBlocksCleared"}


def stored(
    hashes: Sequence[Any], ids: Sequence[Any], parent: Any = None, **fields: Any
) -> dict[str, Any]:
    """A BlockStored of blocks of 16 tokens, as a map."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(ids),
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **fields,
    }


def removed(*hashes: Any, **fields: Any) -> dict[str, Any]:
    """A BlockRemoved as a map."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **fields}


def as_array(event: dict[str, Any], fields: int | None = None) -> list[Any]:
    """The same as older versions write it, with so many fields of theirs; all if not given."""
    names = FIELDS[event["type"]]
    last = max((at for at, name in enumerate(names) if name in event), default=-1)
    count = last + 1 if fields is None else fields
    return [event["type"], *(event.get(name) for name in names[:count])]


def payload(*events: Any, rank: int | None = 0, time: float = 1.0) -> bytes:
    """A batch of maps and arrays; rank None: without one."""
    batch = [time, list(events)] if rank is None else [time, list(events), rank]
    return msgspec.msgpack.encode(batch)


def decoded(*events: Any) -> Batch:
    """What is read of these events."""
    return decode_batch(payload(*events))


def one(event: Any) -> Event:
    """What is read of one event, which must be read."""
    batch = decoded(event)
    assert not batch.skipped, batch.skipped
    (read,) = batch.events
    return read
