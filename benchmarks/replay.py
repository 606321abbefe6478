"""How many requests a second does a replay play, and does a long one stay in bounded memory?

Writes a trace in Mooncake's form, 100,000 and 1,000,000 requests of multi-turn chats, into a
temporary folder, and replays it with the product's policy, each in a process of its own
(`homing replay … --policy priced --json`). Reported: requests, seconds, the peak of resident
memory, decisions a second (index and policy alone), and the bytes that each request of the longer
run takes beyond the shorter one's; 42 of them are what the report is made of.

    python benchmarks/replay.py [--json] [--quick]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BLOCK = 512
SIZES = (100_000, 1_000_000)
QUICK = (1_000, 2_000)
LIVE = 2_000
"""Chats that go on at the same time."""


@dataclass(frozen=True)
class Run:
    """One replay. seconds: of the whole process."""

    requests: int
    seconds: float
    peak_bytes: int
    decisions_per_s: float
    hit: float


def write(path: Path, requests: int) -> None:
    """Chats that take turns, ten on average, each turn some 600 tokens longer than the last."""
    chance = random.Random(1)
    live: list[list[int]] = []
    block = 1
    with path.open("w") as file:
        for number in range(requests):
            if len(live) < LIVE or chance.random() < 0.1:
                chat = [0]
                if len(live) < LIVE:
                    live.append(chat)
                else:
                    live[chance.randrange(LIVE)] = chat
            else:
                chat = live[chance.randrange(LIVE)]
            tokens = len(chat) * BLOCK + chance.randrange(100, 1_100)
            while len(chat) < tokens // BLOCK:
                chat.append(block)
                block += 1
            line = {
                "timestamp": number * 1000 // 12,
                "input_length": tokens,
                "output_length": chance.randrange(20, 400),
                "hash_ids": [*chat, block],
            }
            block += 1
            file.write(json.dumps(line) + "\n")


def replayed(path: Path, requests: int) -> Run:
    """In a process of its own, whose peak the system counts."""
    command = [sys.executable, "-m", "extproc", "replay", str(path), "--policy", "priced", "--json"]
    began = time.perf_counter()
    script = (
        "import resource, subprocess, sys;"
        "done = subprocess.run(sys.argv[1:], check=True, stdout=sys.stdout);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    table, peak = done.stdout.strip().splitlines()
    (row,) = json.loads(table)
    if row["requests"] != requests:
        raise SystemExit(f"{row['requests']} of {requests} requests were played")
    return Run(requests, seconds, int(peak) * 1024, row["decisions_per_s"], row["hit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it runs")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for requests in QUICK if options.quick else SIZES:
            path = Path(folder) / "trace.jsonl"
            write(path, requests)
            runs.append(replayed(path, requests))
    short, long = runs
    grown = (long.peak_bytes - short.peak_bytes) / (long.requests - short.requests)
    report = {"runs": [asdict(run) for run in runs], "bytes_a_request": grown}
    if options.json:
        print(json.dumps(report))
        return
    for run in runs:
        print(
            f"{run.requests:>9,} requests: {run.seconds:.1f} s, peak {run.peak_bytes / 1e6:.0f} MB,"
            f" {run.decisions_per_s:,.0f} decisions/s, hit ratio {run.hit:.3f}"
        )
    print(f"{grown:.0f} bytes a request beyond the shorter run")


if __name__ == "__main__":
    main()
