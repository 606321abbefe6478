"""How fast and how large is the index, beside the ones that others use?

Side by side in one run, a process each, in rounds that alternate: Homing's index, NVIDIA Dynamo's
native tree as called from Python (`ai-dynamo-runtime`), GORGO's trie (`gorgo-lb`) and a dict of
bitmasks with bisection, at 10⁶ pairs (worker, block) over 16 workers and 10⁷ over 64. Every answer
is checked. The native tree pays for the way from Python into Rust and to its own thread; inside its
own process it is faster than it is here. It is compared as what it is to a Python router.

The peers live in .cache/peers, which this makes (from PyPI) if it is not there; `--no-peers` leaves
them out, and so does `--quick` where they are not there yet. Stores and removals are in CPU
seconds, queries in wall time (medians of the rounds' medians, so that a busy machine hurts less),
slices of bulk work in CPU time of the thread, and in wall time beside it.

    python benchmarks/index.py [--json] [--quick] [--no-peers]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE.parent / ".cache" / "peers"
PACKAGES = ("ai-dynamo-runtime==1.6.1", "gorgo-lb==0.2.0", "pydantic<=2.13.5", "uvloop", "numpy")
KINDS = ("known", "half", "unknown", "everybody")


class Process:
    """A structure in a process of its own (`_index_subjects.py`)."""

    def __init__(self, subject: str, conversations: int = 1, workers: int = 1) -> None:
        peer = subject in ("native", "gorgo")
        python = str(PEERS / "bin" / "python") if peer else sys.executable
        script = str(HERE / "_index_subjects.py")
        command = [python, script, subject, str(conversations), str(workers)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if peer else None,
            text=True,
        )
        self._read()

    def ask(self, *task: object) -> dict[str, Any]:
        """Do a task and wait for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def once(subject: str, *task: object) -> dict[str, Any]:
    """One task in a fresh process."""
    process = Process(subject)
    answer = process.ask(*task)
    process.close()
    return answer


def compare(
    subjects: list[str], conversations: int, workers: int, rounds: int, queries: int
) -> dict[str, dict[str, Any]]:
    """The main workload for each subject; the rounds alternate."""
    processes = {name: Process(name, conversations, workers) for name in subjects}
    results: dict[str, dict[str, Any]] = {}
    for name, process in processes.items():
        results[name] = {f"store_{key}": value for key, value in process.ask("store").items()}
    for kind in KINDS:
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name, process in processes.items():
                seen[name].append(process.ask("match", kind, queries))
        for name, answers in seen.items():
            for key in ("us_p50", "us_p99"):
                results[name][f"{kind}_{key}"] = median(answer[key] for answer in answers)
            results[name]["checked"] = results[name].get("checked", 0) + sum(
                answer["checked"] for answer in answers
            )
    for name, process in processes.items():
        if name != "gorgo":
            for key, value in process.ask("remove").items():
                results[name][f"remove_{key}"] = value
            for key, value in process.ask("remove_single", 4 * queries).items():
                results[name][f"single_{key}"] = value
        process.close()
    return results


def pauses(edges: int, blocks: int, repeats: int) -> dict[str, Any]:
    """Bulk work so many times, each in a fresh process; medians, so that one hiccup is no slice."""
    command = [sys.executable, str(HERE / "_index_pauses.py"), str(edges), str(blocks)]
    runs = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(repeats)
    ]
    return {
        name: {kind: median(run[name][kind] for run in runs) for kind in value}
        if isinstance(value, dict)
        else median(run[name] for run in runs)
        for name, value in runs[0].items()
    }


def peers(install: bool) -> list[str]:
    """The peers that can be run here."""
    python = PEERS / "bin" / "python"
    if not python.exists() and install:
        print("installing the peers into .cache/peers", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return ["native", "gorgo"] if python.exists() else []


def measure(quick: bool, with_peers: bool) -> dict[str, Any]:
    """All figures under the names that the docs use."""
    others = peers(install=not quick) if with_peers else []
    rounds, queries = (1, 50) if quick else (5, 200)
    subjects = ["homing", *others, "dict"]
    million = compare(subjects, 50 if quick else 500, 16, rounds, queries)
    scales = {"": million}
    if not quick:
        tenfold = [name for name in subjects if name != "gorgo"]
        scales["10m_"] = compare(tenfold, 5_000, 64, 3, queries)
    turns = (200, 10, 20) if quick else (2_000, 50, 20)
    stores = {name: once(name, "turns", *turns) for name in subjects if name != "gorgo"}
    staggered = {name: once(name, "staggered", 64, queries) for name in subjects}
    short = {
        blocks: once("homing", "edges", 2_000 if quick else 200_000, blocks) for blocks in (20, 100)
    }
    bulk = pauses(*((20_000, 40_000, 1) if quick else (500_000, 1_000_000, 3)))

    figures: dict[str, Any] = {}
    for scale, results in scales.items():
        for name, result in results.items():
            prefix = "" if name == "homing" else f"{name}_"
            for kind in KINDS:
                figures[f"{prefix}match_{kind}_{scale}us_p50"] = result[f"{kind}_us_p50"]
                figures[f"{prefix}match_{kind}_{scale}us_p99"] = result[f"{kind}_us_p99"]
            figures[f"{prefix}store_batches_{scale}blocks_per_s"] = result["store_blocks_per_s"]
            figures[f"{prefix}bytes_per_pair_{scale}".rstrip("_")] = result["store_bytes_per_pair"]
            if name != "gorgo":
                figures[f"{prefix}remove_tail_{scale}blocks_per_s"] = result["remove_blocks_per_s"]
                figures[f"{prefix}remove_single_{scale}us_p50"] = result["single_us_p50"]
    if "native" in million:
        figures["native_remove_single_lost_share"] = million["native"]["single_lost"]
    for name, result in stores.items():
        figures[("" if name == "homing" else f"{name}_") + "store_blocks_per_s"] = result[
            "blocks_per_s"
        ]
    for name, result in staggered.items():
        figures[("" if name == "homing" else f"{name}_") + "match_staggered_us_p50"] = result[
            "us_p50"
        ]
    large = scales.get("10m_", million)["homing"]
    main_run = million["homing"]
    table = main_run["store_table_bytes_per_pair"]
    figures["bytes_per_block"] = main_run["store_bytes_per_pair"] - table
    figures["bytes_per_block_exact"] = main_run["store_bytes_per_pair"]
    for blocks, result in short.items():
        figures[f"bytes_per_block_edges_of_{blocks}"] = result["bytes"]
        figures[f"bytes_per_block_exact_edges_of_{blocks}"] = result["bytes_exact"]
    for clock in ("cpu", "wall"):
        for kind, milliseconds in bulk[f"{clock}_ms"].items():
            name = kind.replace(" ", "_")
            figures[f"slice_{name}_ms_max" + ("_wall" if clock == "wall" else "")] = milliseconds
    figures["slice_ms_max"] = max(bulk["cpu_ms"].values())
    figures["slice_ms_p999_wall"] = bulk["wall_ms_p999"]
    figures["collection_ms_max"] = bulk["collection_ms"]
    figures["collection_ms_of_an_empty_process"] = bulk["empty_collection_ms"]
    figures["store_10m_ms_max" if "10m_" in scales else "store_ms_max"] = large["store_pause_ms"]
    figures["pause_ms_max"] = max(
        figures["slice_ms_max"], figures["collection_ms_max"], large["store_pause_ms"]
    )
    for what in ("snapshot", "load"):
        figures[f"{what}_blocks_per_s"] = bulk[f"{what}_blocks_per_s"]
    figures["snapshot_bytes_per_block"] = bulk["snapshot_bytes_per_block"]
    figures["digest_us"] = bulk["digest_us"]
    figures["answers_checked"] = sum(
        r["checked"] for results in scales.values() for r in results.values()
    )
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="The index beside its peers.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--no-peers", action="store_true", help="only our own structures")
    args = parser.parse_args()
    figures = measure(args.quick, not args.no_peers)
    if args.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:44} {value:14,.2f}")


if __name__ == "__main__":
    main()
