"""The index as rows for operators, some edges at a time: who holds what, exactly, and no keys.

A block is named by a short id, a keyed hash of its key: two blocks can be told apart, the same
block is found again in another replica's rows, and nobody can look a key up. An edge is placed by
the block before it, which stays what it is however edges are cut.
"""

from typing import NotRequired, TypeAlias, TypedDict

import xxhash

from extproc.index.cover import leading
from extproc.index.edge import Edge
from extproc.index.facts import Tier
from extproc.index.prefix import PrefixIndex
from extproc.terms import KEY_BYTES

Blocks: TypeAlias = int | str
"""Blocks of an edge: so many from its start, or a bitset in hex (bit 0 the first block) if there
are holes."""


class HolderRow(TypedDict):
    """What one instance has of an edge, by plane; empty planes are absent.

    touched: which fact (`Overview.facts` of them so far) did so last.
    """

    instance: str
    touched: int
    has: dict[str, Blocks]


PLANES = ("gpu", "cpu", "gpu_confirmed", "cpu_confirmed")
"""Names of the planes, by number."""


class EdgeRow(TypedDict):
    """One edge: short ids of its first and last block and of the one before it ("": none)."""

    after: str
    first: str
    last: str
    blocks: int
    tenant: NotRequired[str]
    holders: list[HolderRow]


class Overview(TypedDict):
    """What holds for the whole index. `facts`: how many it has folded."""

    facts: int
    digest: str
    instances: dict[str, dict[str, int | None]]


def overview(index: PrefixIndex) -> Overview:
    """The instances with what they hold and can. O(instances)."""
    return {
        "facts": index.position,
        "digest": f"{index.digest:016x}",
        "instances": {
            instance.name: {
                "block_size": instance.block_size,
                "gpu_blocks": instance.counts[Tier.GPU],
                "gpu_capacity": instance.limits[Tier.GPU],
                "cpu_blocks": instance.counts[Tier.CPU],
                "cpu_capacity": instance.limits[Tier.CPU],
            }
            for instance in index.instances()
        },
    }


def rows(index: PrefixIndex, secret: int, start: int, looks: int) -> tuple[list[EdgeRow], int]:
    """Edges with their holders, from a place in the store on, at most `looks` places.

    Returns them and where to go on; 0 at the end. start: 1 for the first. Between two calls the
    index may change: an edge that is then cut or joined shows once, twice or not at all.
    secret: seed of the short ids; rows of one secret can be compared. ~2 µs a holder.
    """
    store = index.tree.store
    stop = min(start + looks, store.end)
    found = []
    for edge_id in range(start, stop):
        edge = store.get(edge_id)
        if edge is not None:
            found.append(_row(index, edge, secret))
    return found, stop if stop < store.end else 0


def _row(index: PrefixIndex, edge: Edge, secret: int) -> EdgeRow:
    row: EdgeRow = {
        "after": _short(edge.parent.keys[-KEY_BYTES:], secret) if edge.parent is not None else "",
        "first": _short(edge.keys[:KEY_BYTES], secret),
        "last": _short(edge.keys[-KEY_BYTES:], secret),
        "blocks": edge.size,
        "holders": [],
    }
    if edge.tenant:
        row["tenant"] = edge.tenant
    for instance in index.instances():
        slot = instance.slot
        if not edge.has(slot):
            continue
        row["holders"].append(
            {
                "instance": instance.name,
                "touched": edge.stamp_of(slot),
                "has": {
                    name: _cover(blocks)
                    for plane, name in enumerate(PLANES)
                    if (blocks := edge.blocks(plane, slot))
                },
            }
        )
    return row


def bits(blocks: Blocks) -> int:
    """As a bitset. Raises ValueError for text that is no hex number."""
    return int(blocks, 16) if isinstance(blocks, str) else (1 << blocks) - 1


def _cover(blocks: int) -> Blocks:
    whole = leading(blocks)
    return whole if blocks.bit_length() == whole else f"{blocks:x}"


def _short(key: bytes, secret: int) -> str:
    return f"{xxhash.xxh3_64_intdigest(key, seed=secret) >> 16:012x}"
