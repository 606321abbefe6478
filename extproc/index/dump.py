"""The index for people: who holds what, as JSON and as a readable tree.

Block keys never appear: a block is named by a short id, a keyed hash of its key, so that a dump
tells two blocks apart and nobody can look a key up in it.
"""

from collections import defaultdict
from typing import NotRequired, TypedDict

import xxhash

from extproc.index.cover import leading
from extproc.index.facts import Tier
from extproc.index.prefix import PrefixIndex
from extproc.index.tree import Edge
from extproc.terms import KEY_BYTES


class HolderDump(TypedDict):
    """What one instance holds of an edge. Counts are blocks, the age is in facts."""

    instance: str
    age: int
    gpu: int
    cpu: NotRequired[int]
    confirmed: NotRequired[int]
    hole_after: NotRequired[int]


class EdgeDump(TypedDict):
    """One edge with all below it. `first` and `last` are short ids, `depth` and `blocks` counts."""

    first: str
    last: str
    depth: int
    blocks: int
    tenant: NotRequired[str]
    holders: list[HolderDump]
    edges: list["EdgeDump"]


class IndexDump(TypedDict):
    """The whole index. `facts` is the position in the log that it is the state of."""

    facts: int
    digest: str
    instances: dict[str, dict[str, int | None]]
    edges: list[EdgeDump]


def dump(index: PrefixIndex, secret: int, limit: int = 10_000) -> IndexDump:
    """The index as plain data, at most `limit` edges, heads first. O(edges) time and memory.

    secret: seed of the short ids; dumps of one secret can be compared.
    For operators and tests; not sliced, so not for the pick path's thread.
    """
    kids: dict[int, list[Edge]] = defaultdict(list)
    for edge in index.tree.store:
        kids[edge.parent.id if edge.parent is not None else 0].append(edge)
    top: list[EdgeDump] = []
    waiting = [(edge, top, 0) for edge in kids[0]]
    for edge, into, depth in waiting:  # grows while it is walked: breadth first
        if limit <= 0:
            break
        limit -= 1
        entry = _edge(index, edge, depth, secret)
        into.append(entry)
        waiting += [(kid, entry["edges"], depth + edge.size) for kid in kids[edge.id]]
    for found in [top, *(entry["edges"] for entry in _walk(top))]:
        found.sort(key=lambda entry: (-entry["blocks"], entry["first"]))
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
        "edges": top,
    }


def render(tree: IndexDump, width: int = 100) -> str:
    """A dump as text: one line an edge, indented by depth, no line longer than `width`."""
    lines = [f"{tree['facts']} facts, digest {tree['digest']}"]
    for name, numbers in tree["instances"].items():
        capacity = numbers["gpu_capacity"]
        room = "" if capacity is None else f" of {capacity}"
        cpu = f", {numbers['cpu_blocks']} on CPU" if numbers["cpu_blocks"] else ""
        lines.append(f"{name}: {numbers['gpu_blocks']}{room} blocks{cpu}")
    waiting = [(entry, 0) for entry in reversed(tree["edges"])]
    while waiting:
        entry, level = waiting.pop()
        holders = ", ".join(map(_holder_text, entry["holders"])) or "nobody"
        start, stop = entry["depth"], entry["depth"] + entry["blocks"]
        lines.append(f"{'  ' * level}[{start}, {stop}) {entry['first']}…{entry['last']}  {holders}")
        waiting += [(below, level + 1) for below in reversed(entry["edges"])]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _edge(index: PrefixIndex, edge: Edge, depth: int, secret: int) -> EdgeDump:
    entry: EdgeDump = {
        "first": _short(edge.keys[:KEY_BYTES], secret),
        "last": _short(edge.keys[-KEY_BYTES:], secret),
        "depth": depth,
        "blocks": edge.size,
        "holders": [],
        "edges": [],
    }
    if edge.tenant:
        entry["tenant"] = edge.tenant
    for instance in index.instances():
        slot = instance.slot
        if not edge.has(slot):
            continue
        gpu, cpu = edge.blocks(Tier.GPU, slot), edge.blocks(Tier.CPU, slot)
        holder: HolderDump = {
            "instance": instance.name,
            "age": index.position - edge.stamp_of(slot),
            "gpu": gpu.bit_count(),
        }
        if cpu:
            holder["cpu"] = cpu.bit_count()
        sure = edge.blocks(Tier.GPU + len(Tier), slot) | edge.blocks(Tier.CPU + len(Tier), slot)
        if sure:
            holder["confirmed"] = sure.bit_count()
        whole = leading(gpu)
        if gpu.bit_length() > whole:
            holder["hole_after"] = whole
        entry["holders"].append(holder)
    return entry


def _holder_text(holder: HolderDump) -> str:
    text = f"{holder['instance']}:{holder['gpu']}"
    if "cpu" in holder:
        text += f"+{holder['cpu']}cpu"
    if "hole_after" in holder:
        text += f"!{holder['hole_after']}"
    return f"{text} ({holder['age']} facts ago)"


def _walk(entries: list[EdgeDump]) -> list[EdgeDump]:
    found = list(entries)
    for entry in found:  # grows while it is walked
        found += entry["edges"]
    return found


def _short(key: bytes, secret: int) -> str:
    return f"{xxhash.xxh3_64_intdigest(key, seed=secret) >> 40:06x}"
