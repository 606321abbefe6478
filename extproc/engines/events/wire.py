"""KV-cache events as engines put them on the wire: frames and msgpack in, plain events out.

vLLM and SGLang publish `[topic, sequence number, payload]` over ZeroMQ; the payload is msgpack.
What differs between versions, all of it read here (vLLM's `distributed/kv_events.py`, SGLang's
`disaggregation/kv_events.py` and `mem_cache/events.py`):

- a batch is `[ts, events, rank]`, or a map with these names; the rank may be missing;
- an event is `[tag, field, …]` with fields missing or added at the end, or a map with a `type`;
- a block hash is an integer, signed or not, or bytes, of which the low 64 bits count;
- token ids are integers, or pairs of neighbours (EAGLE), of which the first counts;
- an answer to a replay request may carry the topic or not.
"""

from array import array
from collections.abc import Sequence
from sys import byteorder
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from extproc.errors import PeerViolation
from extproc.index import Tier
from extproc.terms import TOKEN_BYTES, TokenIds

EngineHash: TypeAlias = int
"""What an engine calls a block: 64 bits of its own hash."""

_MASK: Final = (1 << 64) - 1

END: Final = _MASK
"""The sequence number, -1, that ends an answer to a replay request."""

_PREFIX_KINDS = frozenset(("full_attention", "mla_attention", "sink_full_attention"))
"""Kinds of vLLM's cache groups of which a held block means that all of it can be reused."""

_COMPONENTS = frozenset(("full", "swa", "mamba"))
"""SGLang's parts of a cache; of these `full` is a prefix."""

_TIERS = {"GPU": Tier.GPU, "CPU": Tier.CPU, "CPU_PINNED": Tier.CPU}
"""Media that an engine reuses blocks from by itself; disks and remote stores are left out."""

_STORED = (
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
)
_REMOVED = ("block_hashes", "medium", "group_idx", "locality")


class Stored(Struct, frozen=True, gc=False):
    """Blocks were filled, or copied to another tier.

    hashes: a chain after `parent` (None: the first blocks of a prompt). ids: the tokens of all of
    them, empty where the engine does not repeat what it has already said. page: tokens a block.
    adapter: None where the event does not say which. extra_keys: for each block what its hash
    covers besides tokens, as sent. salt: where the event names it by itself. again: it was merely
    read, not filled anew. group: of hybrid models, None where there is only one.
    """

    hashes: list[EngineHash]
    parent: EngineHash | None
    ids: TokenIds
    page: int
    tier: Tier
    adapter: str | None
    extra_keys: Sequence[Any] | None
    salt: str
    group: int | None
    again: bool


class Removed(Struct, frozen=True, gc=False):
    """One copy of each of these blocks is gone."""

    hashes: list[EngineHash]
    tier: Tier
    group: int | None


class AllCleared(Struct, frozen=True, gc=False):
    """Nothing is left."""


Event: TypeAlias = Stored | Removed | AllCleared


class Message(Struct, frozen=True, gc=False):
    """One message, its payload not decoded yet."""

    seq: int
    payload: bytes


class Batch(Struct, frozen=True, gc=False):
    """What one message says. rank: of the data-parallel group. skipped: events left out, by why."""

    time: float
    events: list[Event]
    rank: int | None
    skipped: dict[str, int]


class _BadEvent(Exception):
    """An event that cannot be used, for this reason."""


def read_frames(frames: Sequence[bytes]) -> Message:
    """A live message or a part of a replay's answer. Raises PeerViolation."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise PeerViolation("KV events: not [topic, sequence number, payload]")
    return Message(int.from_bytes(frames[-2], "big"), frames[-1])


def decode_batch(payload: bytes) -> Batch:
    """The events of one payload; a bad or unknown one is left out and counted.

    Raises PeerViolation where the payload is no batch. O(bytes): 25 ns a token id.
    """
    try:
        batch = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerViolation(f"KV events: no msgpack: {type(error).__name__}") from None
    if isinstance(batch, dict):
        rank = batch.get("data_parallel_rank", batch.get("attn_dp_rank"))
        batch = [batch.get("ts"), batch.get("events"), rank]
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        raise PeerViolation("KV events: no batch")
    events: list[Event] = []
    skipped: dict[str, int] = {}
    for raw in batch[1]:
        try:
            events.append(_event(raw))
        except _BadEvent as bad:
            reason = str(bad)
        except (TypeError, ValueError, OverflowError, AttributeError, LookupError):
            reason = "malformed"
        else:
            continue
        skipped[reason] = skipped.get(reason, 0) + 1
    rank = batch[2] if len(batch) > 2 else None
    time = batch[0]
    return Batch(
        float(time) if isinstance(time, int | float) else 0.0,
        events,
        rank if isinstance(rank, int) else None,
        skipped,
    )


def _event(raw: Any) -> Event:
    if isinstance(raw, dict):
        tag, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        tag, fields = raw[0], {}
        names = _REMOVED if tag == "BlockRemoved" else _STORED
        fields = dict(zip(names, raw[1:], strict=False))
    else:
        raise _BadEvent("malformed")
    if tag == "BlockStored":
        return _stored(fields)
    if tag == "BlockRemoved":
        group = fields.get("group_idx")
        component = group if isinstance(group, str) else fields.get("component_type")
        if component is not None and _component(component) != "full":
            raise _BadEvent("not_a_prefix")
        return Removed(
            _hashes(fields.get("block_hashes")),
            _tier(fields),
            group if isinstance(group, int) else None,
        )
    if tag == "AllBlocksCleared":
        return AllCleared()
    raise _BadEvent("unknown_tag")


def _stored(fields: dict[str, Any]) -> Stored:
    name, extra = fields.get("lora_name"), fields.get("extra_keys")
    component, metadata = fields.get("component_type"), fields.get("metadata")
    if isinstance(name, dict):  # SGLang's arrays go on with its own fields
        name, metadata = None, name
    elif extra is None or isinstance(extra, dict):
        if isinstance(name, str) and _component(name) in _COMPONENTS:
            name, component = None, name
        if isinstance(extra, dict):
            metadata, extra = extra, None
    if not _is_prefix(fields, component):
        raise _BadEvent("not_a_prefix")
    ids = fields.get("token_ids") or []
    if not isinstance(ids, list):
        raise _BadEvent("malformed")
    if ids and isinstance(ids[0], list):
        ids = [pair[0] for pair in ids]
    packed = array("I", ids)
    if byteorder == "big":
        packed.byteswap()
    hashes, page = _hashes(fields.get("block_hashes")), fields.get("block_size") or 0
    if not isinstance(page, int) or not (extra is None or isinstance(extra, list)):
        raise _BadEvent("malformed")
    if packed and page * len(hashes) != len(packed):
        raise _BadEvent("not_a_prefix")  # blocks that can never serve a hit are left out of it
    parent = fields.get("parent_block_hash")
    adapter = name or ("" if fields.get("lora_id") is None else None)
    salt = fields.get("cache_salt")
    if salt is None and isinstance(metadata, dict):
        salt = metadata.get("cache_salt")
    group = fields.get("group_idx")
    return Stored(
        hashes,
        None if parent is None else _hash(parent),
        TokenIds(packed.tobytes()),
        page,
        _tier(fields),
        adapter if isinstance(adapter, str) else None,
        extra,
        salt if isinstance(salt, str) else "",
        group if isinstance(group, int) else None,
        fields.get("origin") == "REUSED",
    )


def _is_prefix(fields: dict[str, Any], component: Any) -> bool:
    """Whether what holds a block of this group can reuse all of its prefix."""
    kind = fields.get("kv_cache_spec_kind")
    if kind is not None:
        return kind in _PREFIX_KINDS
    if component is not None:
        return _component(component) == "full"
    return fields.get("group_idx") in (None, 0)


def _component(label: Any) -> str:
    return str(label).rpartition(".")[2].lower()


def _tier(fields: dict[str, Any]) -> Tier:
    medium = fields.get("medium")
    if fields.get("locality") == "REMOTE":
        raise _BadEvent("medium")
    if medium is None:
        return Tier.GPU
    tier = _TIERS.get(medium.upper())
    if tier is None:
        raise _BadEvent("medium")
    return tier


def _hashes(hashes: Any) -> list[EngineHash]:
    if not isinstance(hashes, list):
        raise _BadEvent("malformed")
    if hashes and type(hashes[0]) is int:
        return [value & _MASK for value in hashes]
    return [_hash(value) for value in hashes]


def _hash(value: Any) -> EngineHash:
    """The low 64 bits, as vLLM itself makes integers of its bytes."""
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    if type(value) is not int:
        raise _BadEvent("malformed")
    return value & _MASK


def split(event: Stored, blocks: int) -> list[Stored]:
    """The same in pieces of at most so many blocks, each a chain after the one before."""
    if len(event.hashes) <= blocks:
        return [event]
    step = event.page * TOKEN_BYTES
    pieces = []
    for start in range(0, len(event.hashes), blocks):
        stop = start + blocks
        extra = event.extra_keys
        pieces.append(
            msgspec.structs.replace(
                event,
                hashes=event.hashes[start:stop],
                parent=event.hashes[start - 1] if start else event.parent,
                ids=TokenIds(event.ids[start * step : stop * step]),
                extra_keys=extra[start:stop] if extra is not None else None,
            )
        )
    return pieces
