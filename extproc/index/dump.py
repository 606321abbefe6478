"""Rows of an index as a tree for people: heads first, each edge below the block it goes on from."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from extproc.index.rows import EdgeRow, HolderRow, Overview, bits

_SHOWN = 6
"""Letters of a short id in the text; the whole is in the rows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an edge is in the tree: edges above it, blocks before it."""

    row: EdgeRow
    level: int
    depth: int


def arrange(rows: Iterable[EdgeRow], limit: int) -> list[Place]:
    """The rows as a tree, at most `limit`, heads first; each before those below it.

    O(rows log rows).
    """
    kids = below(rows)
    for found in kids.values():
        found.sort(key=lambda row: (-row["blocks"], row["first"]))
    chosen = kids[""][:limit]
    for row in chosen:  # grows while it is walked: breadth first
        if len(chosen) >= limit:
            break
        chosen += kids[row["last"]][: limit - len(chosen)]
    shown = {id(row) for row in chosen}
    places = []
    waiting = [Place(row, 0, 0) for row in reversed(kids[""])]
    while waiting:
        place = waiting.pop()
        if id(place.row) not in shown:
            continue
        places.append(place)
        depth = place.depth + place.row["blocks"]
        kids_of = reversed(kids[place.row["last"]])
        waiting += [Place(row, place.level + 1, depth) for row in kids_of]
    return places


def below(rows: Iterable[EdgeRow]) -> dict[str, list[EdgeRow]]:
    """Last block of an edge → the edges that go on from it; "" → the heads.

    An edge that shows twice counts once, as it was last. One that goes on from a block that is
    nowhere the last, because the index changed while it was read, is taken for a head.
    """
    known = {row["first"]: row for row in rows}.values()
    ends = {row["last"] for row in known}
    kids: dict[str, list[EdgeRow]] = defaultdict(list)
    for row in known:
        kids[row["after"] if row["after"] in ends else ""].append(row)
    return kids


def render(overview: Overview, places: Sequence[Place], width: int = 100) -> str:
    """As text: one line an edge, indented by level, no line longer than `width`."""
    lines = [f"{overview['facts']} facts, digest {overview['digest']}"]
    for name, numbers in overview["instances"].items():
        capacity = numbers["gpu_capacity"]
        room = "" if capacity is None else f" of {capacity}"
        cpu = f", {numbers['cpu_blocks']} on CPU" if numbers["cpu_blocks"] else ""
        lines.append(f"{name}: {numbers['gpu_blocks']}{room} blocks{cpu}")
    now = overview["facts"]
    for place in places:
        holders = ", ".join(_holder_text(one, now) for one in place.row["holders"]) or "nobody"
        lines.append(f"{'  ' * place.level}{span(place)}  {holders}")
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def span(place: Place) -> str:
    """Which blocks an edge has, and what its first and last are called."""
    row = place.row
    start, stop = place.depth, place.depth + row["blocks"]
    return f"[{start}, {stop}) {row['first'][:_SHOWN]}…{row['last'][:_SHOWN]}"


def _holder_text(holder: HolderRow, now: int) -> str:
    gpu, cpu = (bits(holder["has"].get(tier, 0)) for tier in ("gpu", "cpu"))
    text = f"{holder['instance']}:{gpu.bit_count()}"
    if cpu:
        text += f"+{cpu.bit_count()}cpu"
    whole = (gpu ^ (gpu + 1)).bit_length() - 1
    if gpu.bit_length() > whole:
        text += f"!{whole}"
    return f"{text} ({max(now - holder['touched'], 0)} facts ago)"
