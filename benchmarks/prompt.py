"""What does it cost to know a prompt's block keys, from the bytes of its body?

Conversations of 1k to 100k tokens (the sources of Python's library as agents read them), at first
sight and at their next turn (+200 tokens), four ways, which alternate in one run on one thread:

memo    as served: what is known of earlier turns is not rendered again
exact   without the memo by message prefix: every turn is rendered whole
plain   `tokenizers`, nothing remembered

All must give the same keys in the end; `digest` is the hash of all keys. Times are medians in ms.

    python benchmarks/prompt.py [--json] [--quick] [--tokenizer DIR]
"""

import argparse
import json
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from xxhash import xxh3_64

from extproc.prompt import Chain, ServedModel, parse_body, root_seed
from extproc.prompt.modelfiles import read_templates
from extproc.prompt.tokenizer import Tokenizer
from extproc.stages import Stages

PATH = "/v1/chat/completions"
BLOCK_SIZE = 16
ROOT = root_seed(secret=b"benchmark", model="m", block_size=BLOCK_SIZE)
MESSAGE_BYTES = 3_800
"""Of one message, as in an agent's session: 112 messages in 426 KB."""
TURN_BYTES = 380
"""Of an answer and of the question after it: 200 tokens together."""
BYTES_PER_TOKEN = 4.2
STAGES = ("parse", "render", "tokenize", "hash", "remember")


@dataclass(frozen=True, slots=True)
class Plan:
    """tokens of the conversations; turns timed of each; how many begin with a fresh tokenizer."""

    tokens: tuple[int, ...]
    turns: int
    plain_turns: int
    fresh: int


FULL = Plan((1_000, 8_000, 32_000, 100_000), turns=20, plain_turns=4, fresh=3)
QUICK = Plan((1_000, 100_000), turns=6, plain_turns=1, fresh=1)


class Talk:
    """A conversation of about so many tokens, of text that no other seed has in this order."""

    def __init__(self, source: str, tokens: int, seed: int) -> None:
        self._source, self._random = source, Random(seed)
        size = int(tokens * BYTES_PER_TOKEN)
        count = max(size // MESSAGE_BYTES // 2 * 2, 2)
        self._messages = [{"role": "system", "content": self._text(size // count)}]
        for number in range(1, count):
            role = "user" if number % 2 else "assistant"
            self._messages.append({"role": role, "content": self._text(size // count)})

    def body(self) -> bytes:
        """The request as a client sends it."""
        request = {"model": "m", "messages": self._messages, "max_tokens": 200}
        return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()

    def go_on(self) -> None:
        """An answer, and the next question."""
        for role in ("assistant", "user"):
            self._messages.append({"role": role, "content": self._text(TURN_BYTES)})

    def _text(self, size: int) -> str:
        start = self._random.randrange(len(self._source) - size)
        return self._source[start : start + size]


class Way:
    """One way to the keys, with the milliseconds that each stage took."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.spent: dict[str, list[float]] = {}

    def __call__(self, body: bytes) -> tuple[Chain, ...]:
        stages = Stages()
        start = time.perf_counter()
        with stages.stage("parse"):
            prompt = parse_body(PATH, body)
        chains = self.model.encode(prompt, ROOT, BLOCK_SIZE, stages)
        self._note("all", (time.perf_counter() - start) * 1e3)
        for name in STAGES:
            took = sum(end - begin for stage, begin, end in stages.spans if stage == name)
            self._note(name, took / 1e6)
        return chains

    def _note(self, name: str, milliseconds: float) -> None:
        self.spent.setdefault(name, []).append(milliseconds)

    def medians(self) -> dict[str, float]:
        """By stage, and of all."""
        result = {name: round(median(times), 4) for name, times in self.spent.items()}
        self.spent.clear()
        return result


def sources() -> str:
    """Python's own library, as one text."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(file.read_text("utf-8", "ignore") for file in files)


def ways(directory: Path) -> dict[str, Way]:
    """The contestants; those that remember have seen chats of this shape before."""
    file = directory / "tokenizer.json"
    fast, reference = Tokenizer(file), Tokenizer(file, try_fast=False)

    def model(tokenizer: Tokenizer, **options: Any) -> Way:
        return Way(ServedModel("m", tokenizer, read_templates(directory), **options))

    return {
        "memo": model(fast),
        "exact": model(fast, whole_bytes=inf),
        "plain": model(reference, memo_bytes=0),
    }


def measure(directory: Path, plan: Plan) -> dict[str, Any]:
    """All figures, as the JSON object that is printed."""
    source = sources()
    hasher = xxh3_64()
    firsts = [first_ever(directory, source, seed) for seed in range(plan.fresh)]
    contestants = ways(directory)
    for seed in range(4):
        for body in turns(Talk(source, 500, 10_000 + seed), 3):
            contestants["memo"](body)
    table: dict[str, Any] = {}
    for tokens in plan.tokens:
        # Each way has a conversation of its own: a body that another way has read is known.
        talks = {name: Talk(source, tokens, tokens + i) for i, name in enumerate(contestants)}
        row: dict[str, Any] = {}
        for name, way in contestants.items():
            way.spent.clear()
            way(talks[name].body())
            row[name] = {"first": way.medians()}
        counts: list[int] = []
        for number in range(plan.turns):
            for name, way in contestants.items():
                if name == "plain" and number >= plan.plain_turns:
                    continue
                talks[name].go_on()
                (chain,) = way(talks[name].body())
                counts.append(chain.tokens)
                hasher.update(chain.keys)
        for name, way in contestants.items():
            row[name]["next"] = way.medians()
            last = talks[name].body()
            if way(last) != contestants["plain"](last):
                raise RuntimeError(f"{name} differs from plain at {tokens} tokens")
        table[str(tokens)] = {"tokens": int(median(counts)), **row}
    small, large = (table[str(plan.tokens[i])] for i in (0, -1))

    def growth(name: str) -> float:
        more = large[name]["next"]["all"] - small[name]["next"]["all"]
        return round(more * 1e3 / ((large["tokens"] - small["tokens"]) / 100), 3)

    return {
        "first_ms_100k": round(median(firsts), 3),
        "next_turn_ms_100k": large["memo"]["next"]["all"],
        "next_turn_exact_ms_100k": large["exact"]["next"]["all"],
        "plain_next_turn_ms_100k": large["plain"]["next"]["all"],
        "growth_us_per_100_tokens": growth("memo"),
        "growth_exact_us_per_100_tokens": growth("exact"),
        "digest": hasher.hexdigest(),
        "table": table,
    }


def first_ever(directory: Path, source: str, seed: int) -> float:
    """Milliseconds of a prompt of 100k tokens whose words the tokenizer has never seen."""
    tokenizer = Tokenizer(directory / "tokenizer.json")
    way = Way(ServedModel("m", tokenizer, read_templates(directory)))
    way(Talk(source, 100_000, seed).body())
    return float(way.medians()["all"])


def turns(talk: Talk, count: int) -> Iterator[bytes]:
    """The bodies of the next turns."""
    for _ in range(count):
        talk.go_on()
        yield talk.body()


def show(result: dict[str, Any]) -> None:
    """The table that docs/exactness.md has."""
    print("| tokens | turn | way | " + " | ".join(STAGES) + " | all, ms |")
    print("|---|---|---|" + "---|" * (len(STAGES) + 1))
    for row in result["table"].values():
        for turn in ("first", "next"):
            for way in ("memo", "exact", "plain"):
                times = row[way][turn]
                cells = [f"{times[name]:.2f}" for name in (*STAGES, "all")]
                print(f"| {row['tokens']:,} | {turn} | {way} | " + " | ".join(cells) + " |")
    for name, value in result.items():
        if name != "table":
            print(f"{name}: {value}")


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, no figures")
    parser.add_argument("--tokenizer", type=Path, help="a directory; Qwen3's if not given")
    arguments = parser.parse_args()
    directory = arguments.tokenizer
    if directory is None:
        from tests.tokenizers import tokenizer_dir

        directory = tokenizer_dir("qwen3")
    result = measure(directory, QUICK if arguments.quick else FULL)
    print(json.dumps(result)) if arguments.json else show(result)


if __name__ == "__main__":
    main()
