"""Does a match stay as fast when prompts get longer, instances more, the index larger?

Median time of a match against the depth of the prompt (10² to 10⁵ blocks, in one edge after
another of at most 1,024 and as one conversation that grew by turns), the number of instances that
hold all of it (4 to 512), and the size of the index (10⁴ to 10⁷ blocks, known 2,000-block prompts).
`--plot` draws docs/index-growth.svg.

    python benchmarks/index_growth.py [--json] [--quick] [--plot]
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from extproc.index import Held, Joined, PrefixIndex, Source, Tier
from extproc.terms import NO_BLOCK, BlockKey, InstanceId, PackedKeys

PLOT = Path(__file__).parents[1] / "docs" / "index-growth.svg"
Series = dict[int, float]


class Bench:
    """An index, a source of keys, and a stopwatch."""

    def __init__(self, instances: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64(1))
        self.names = [InstanceId(f"i{n}") for n in range(instances)]
        self.index = PrefixIndex()
        for name in self.names:
            self.index.apply(Joined(name, 16))

    def keys(self, blocks: int) -> bytes:
        """A chain that nobody has yet."""
        return self.rng.integers(1, 2**64, blocks, dtype=np.uint64).tobytes()

    def hold(self, instance: int, keys: bytes, start: int = 0) -> None:
        """The instance has the chain from block `start` on."""
        parent = BlockKey(int.from_bytes(keys[8 * start - 8 : 8 * start], "little"))
        fact = Held(
            self.names[instance],
            Tier.GPU,
            parent if start else NO_BLOCK,
            PackedKeys(keys[8 * start :]),
            Source.PICK,
        )
        self.index.apply(fact)

    def us(self, queries: list[bytes], depth: int) -> float:
        """Median microseconds of a match, each of which must be that deep."""
        while self.index.step():
            pass
        times = []
        for keys in queries:
            start = time.perf_counter_ns()
            found = self.index.match(PackedKeys(keys))
            times.append(time.perf_counter_ns() - start)
            if max(depths.gpu for depths in found.values()) != depth:
                raise AssertionError("a match is not as deep as it must be")
        return sorted(times)[len(times) // 2] / 1e3


def by_depth(depths: list[int], rounds: int) -> Series:
    """Against the prompt's depth, among 64 instances and 100 other conversations."""
    series = {}
    for depth in depths:
        bench = Bench(64)
        for other in range(100):
            bench.hold(other % 64, bench.keys(200))
        keys = bench.keys(depth)
        bench.hold(7, keys)
        series[depth] = bench.us([keys] * rounds, depth)
    return series


def by_instances(counts: list[int], rounds: int) -> Series:
    """Against the instances that hold all of a prompt of 2,000 blocks."""
    series = {}
    for count in counts:
        bench = Bench(count)
        keys = bench.keys(2_000)
        for instance in range(count):
            bench.hold(instance, keys)
        series[count] = bench.us([keys] * rounds, 2_000)
    return series


def by_size(sizes: list[int], rounds: int) -> Series:
    """Against the blocks in the index, in conversations of 2,000 with a shared head of 100."""
    series = {}
    bench = Bench(64)
    head = bench.keys(100)
    chains: list[bytes] = []
    for size in sizes:
        while len(chains) * 2_000 < size:
            chains.append(head + bench.keys(1_900))
            bench.hold(len(chains) % 64, chains[-1])
        chosen = [chains[int(n)] for n in bench.rng.integers(0, len(chains), rounds)]
        series[size] = bench.us(chosen, 2_000)
    return series


def plot(charts: dict[str, Series]) -> str:
    """The series side by side as SVG, both axes logarithmic."""
    width, height, gap = 300, 220, 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(charts) * (width + gap)} '
        f'{height + 70}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, series) in enumerate(charts.items()):
        left, top = gap * 0.8 + number * (width + gap), 30
        xs = [math.log10(x) for x in series]
        low, high = min(xs), max(xs)

        def at(x: float, y: float, left: float = left, low: float = low, high: float = high) -> str:
            across = left + (math.log10(x) - low) / (high - low) * width
            return f"{across:.1f},{30 + height - math.log10(max(y, 1)) / 3 * height:.1f}"

        parts.append(f'<text x="{left}" y="18" font-weight="bold">{title}</text>')
        for us in (1, 10, 100, 1000):
            y = top + height - math.log10(us) / 3 * height
            parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{us} µs</text>')
        for x, y in series.items():
            across, down = at(x, y).split(",")
            label = f"{x:,}"
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="#06c"/>')
            parts.append(
                f'<text x="{across}" y="{float(down) - 8:.1f}" text-anchor="middle">{y:.1f}</text>'
            )
            parts.append(
                f'<text x="{across}" y="{top + height + 18}" text-anchor="middle" '
                f'font-size="10">{label}</text>'
            )
        line = " ".join(at(x, y) for x, y in series.items())
        parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Print the series."""
    parser = argparse.ArgumentParser(description="Match time against growth.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--plot", action="store_true", help="draw docs/index-growth.svg")
    args = parser.parse_args()
    top = 4 if args.quick else 5
    rounds = 50 if args.quick else 300
    charts = {
        "blocks of the prompt": by_depth([10**n for n in range(2, top + 1)], rounds),
        "instances that hold it": by_instances(
            [4, 16, 64, 256, 512][: 3 if args.quick else 5], rounds
        ),
        "blocks in the index": by_size([10**n for n in range(4, 6 if args.quick else 8)], rounds),
    }
    if args.plot:
        PLOT.write_text(plot(charts))
    if args.json:
        names = ("depth", "instances", "size")
        flat: dict[str, Any] = {
            f"match_us_p50_{name}_{x}": y
            for name, series in zip(names, charts.values(), strict=True)
            for x, y in series.items()
        }
        print(json.dumps(flat, indent=1))
        return
    for title, series in charts.items():
        print(title)
        for x, y in series.items():
            print(f"{x:12,} {y:10.2f} µs")


if __name__ == "__main__":
    main()
