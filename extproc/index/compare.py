"""What differs between two indexes, from their rows: by content, however their edges are cut."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from extproc.index.dump import below
from extproc.index.rows import EdgeRow, Overview, bits


@dataclass(slots=True)
class Run:
    """Blocks without a branch, as long as can be.

    has: (instance, plane) → bitset. touched: instance → by which facts, from its first block on.
    """

    first: str
    last: str
    depth: int
    blocks: int
    has: dict[tuple[str, str], int] = field(default_factory=dict)
    touched: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunDifference:
    """A run of blocks of which one side knows other holders than the other, or other touches.

    has: instance → plane → (blocks here, there), where they are not the same ones; under `touched`
    the latest fact (here, there), where facts touched it otherwise.
    """

    run: Run
    has: dict[str, dict[str, tuple[int, int]]]


def overviews_differ(
    one: Overview, other: Overview
) -> dict[str, dict[str, tuple[int | None, int | None]]]:
    """Instance → what of it differs → (here, there); an instance that is not there has nothing."""
    found = {}
    for name in sorted({*one["instances"], *other["instances"]}):
        here, there = (side["instances"].get(name, {}) for side in (one, other))
        differing = {
            what: (here.get(what), there.get(what))
            for what in (*here, *(what for what in there if what not in here))
            if here.get(what) != there.get(what)
        }
        if differing:
            found[name] = differing
    return found


def rows_differ(one: Iterable[EdgeRow], other: Iterable[EdgeRow]) -> Iterator[RunDifference]:
    """Runs of blocks whose holders differ, heads first. O(rows) time and memory.

    Where one side knows a branch that the other does not, or both go on to other blocks, the run
    that this is in differs as a whole.
    """
    here, there = (_runs(side) for side in (one, other))
    for run in sorted({**there, **here}.values(), key=lambda run: (run.depth, run.first)):
        mine, yours = here.get(run.first), there.get(run.first)
        nobody = Run("", "", 0, 0)
        differing = _differing(mine or nobody, yours or nobody)
        if differing:
            yield RunDifference(run, differing)


def _differing(here: Run, there: Run) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    parted = here.blocks == there.blocks and here.last != there.last
    for instance, plane in sorted({*here.has, *there.has}):
        mine, yours = (side.has.get((instance, plane), 0) for side in (here, there))
        if mine != yours or parted:
            found[instance][plane] = (mine.bit_count(), yours.bit_count())
    for instance in sorted({*here.touched, *there.touched}):
        touches = [side.touched.get(instance, []) for side in (here, there)]
        if touches[0] != touches[1]:
            latest = [max(side, default=0) for side in touches]
            found[instance]["touched"] = (latest[0], latest[1])
    return dict(found)


def _runs(rows: Iterable[EdgeRow]) -> dict[str, Run]:
    """First block → run. Edges are joined where the only way on is one other edge."""
    kids = below(rows)
    found = {}
    waiting = [(row, 0) for row in kids[""]]
    while waiting:
        row, depth = waiting.pop()
        run = Run(row["first"], row["last"], depth, 0)
        found[run.first] = run
        _add(run, row)
        while len(ways := kids[run.last]) == 1:
            _add(run, ways[0])
        waiting += [(kid, depth + run.blocks) for kid in ways]
    return found


def _add(run: Run, row: EdgeRow) -> None:
    for holder in row["holders"]:
        instance = holder["instance"]
        for plane, blocks in holder["has"].items():
            before = run.has.get((instance, plane), 0)
            run.has[instance, plane] = before | bits(blocks) << run.blocks
        touches = run.touched.setdefault(instance, [])
        if holder["touched"] not in touches[-1:]:
            touches.append(holder["touched"])
    run.last = row["last"]
    run.blocks += row["blocks"]
