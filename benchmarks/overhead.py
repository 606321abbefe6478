"""What does a pick cost, through real Envoy?

Later turns of conversations of 2, 100 and 400 KB go through one Envoy twice: with the pick, and on
a route where the filter is off. Engines answer at once (Envoy's own direct responses), so that
the difference is Homing and the protocol. The two alternate in one run.

added_ms_p50: median with the pick less median without, one request at a time. cpu_us: Homing's CPU
a request at concurrency 16, all its threads, from the kernel's schedstat. The answers' header says
for each request that its prefix was found; a run in which it was not fails.

    python benchmarks/overhead.py [--json] [--quick] [--mode FULL_DUPLEX_STREAMED] [--tokenizer DIR]
"""

import argparse
import asyncio
import json
import lzma
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ruamel.yaml import YAML

from extproc.demo.engine import DEMO_TOKENIZER, EngineSettings
from extproc.demo.processes import Process
from extproc.demo.stack import HOMING, Stack

CORPUS = DEMO_TOKENIZER.parent / "corpus" / "topics.txt.xz"
MODEL = "demo-model"
CONCURRENCY = 16
FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
MESSAGE_BYTES = 3_800
"""Of one message, as in an agent's session: 112 messages in 426 KB."""


@dataclass(frozen=True, slots=True)
class Size:
    """kilobytes of a body; conversations, and later turns of each, that are timed."""

    kilobytes: int
    conversations: int
    turns: int


FULL = (Size(2, 120, 6), Size(100, 40, 6), Size(400, 16, 6))
QUICK = (Size(2, 8, 2), Size(100, 4, 2), Size(400, 2, 2))


class Talk:
    """A conversation that has `size` kilobytes before its first timed turn."""

    def __init__(self, words: random.Random, text: str, kilobytes: int) -> None:
        self._words, self._text = words, text
        self._messages = [
            {"role": "system", "content": f"Talk {words.random()}. " + self._some(600)}
        ]
        while sum(len(m["content"]) for m in self._messages) < kilobytes * 1000 - 1000:
            self._add("user", min(MESSAGE_BYTES, kilobytes * 400))
            self._add("assistant", min(MESSAGE_BYTES, kilobytes * 400))

    def body(self) -> bytes:
        """The next turn: an answer and a question of about 200 tokens more."""
        self._add("user", 400)
        body = {"model": MODEL, "messages": self._messages, "max_tokens": 16}
        data = json.dumps(body).encode()
        self._add("assistant", 400)
        return data

    def _add(self, role: str, size: int) -> None:
        self._messages.append({"role": role, "content": self._some(size)})

    def _some(self, size: int) -> str:
        at = self._words.randrange(len(self._text) - size)
        return self._text[at : at + size]


class Connection:
    """One keep-alive connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: str) -> "Connection":
        host, port = address.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def post(self, body: bytes, plain: bool) -> tuple[float, str]:
        """One request: (milliseconds, why Homing picked as it did)."""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            f"content-type: application/json\r\n{'x-plain: 1' if plain else 'x-picked: 1'}\r\n\r\n"
        )
        start = time.perf_counter()
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        took = (time.perf_counter() - start) * 1000
        assert answer.startswith("HTTP/1.1 200"), answer
        assert "content-length: 0" in answer, answer
        why = [line for line in answer.split("\r\n") if line.startswith("x-homing-why: ")]
        return took, why[0].removeprefix("x-homing-why: ") if why else ""

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def cpu_ns(pid: int) -> int:
    """Time on a CPU of all threads of a process, as the kernel's scheduler counts it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


async def measure(size: Size, address: str, pid: int, text: str) -> dict[str, float]:
    """One body size: later turns alone, with and without the pick; then 16 at a time."""
    words = random.Random(size.kilobytes)
    talks = [Talk(words, text, size.kilobytes) for _ in range(size.conversations)]
    connection = await Connection.open(address)
    first = [(await connection.post(talk.body(), plain=False))[0] for talk in talks]
    picked, plain = [], []
    for _ in range(size.turns):
        for talk in talks:
            body = talk.body()
            plain.append((await connection.post(body, plain=True))[0])
            took, why = await connection.post(body, plain=False)
            assert why.startswith("home"), why
            picked.append(took)
    connection.close()
    bodies = [talk.body() for _ in range(size.turns) for talk in talks]
    before, start = cpu_ns(pid), time.perf_counter()
    await together(address, bodies)
    seconds, cpu = time.perf_counter() - start, cpu_ns(pid) - before
    return {
        "first_turn_ms_p50": median(first),
        "plain_ms_p50": median(plain),
        "picked_ms_p50": median(picked),
        "added_ms_p50": median(picked) - median(plain),
        "cpu_us": cpu / len(bodies) / 1000,
        "requests_per_s": len(bodies) / seconds,
    }


async def together(address: str, bodies: Sequence[bytes]) -> None:
    waiting = list(reversed(bodies))

    async def client() -> None:
        connection = await Connection.open(address)
        while waiting:
            _, why = await connection.post(waiting.pop(), plain=False)
            assert why.startswith("home"), why
        connection.close()

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))


def instant_engines(envoy_yaml: str, stack: Stack) -> str:
    """The stack's Envoy, with engines that answer at once and a route past the filter."""
    config: dict[str, Any] = YAML(typ="safe").load(envoy_yaml)
    resources = config["static_resources"]
    listener = resources["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    host = manager["route_config"]["virtual_hosts"][0]
    past = json.loads(json.dumps(host["routes"][0]))
    past["match"]["headers"] = [{"name": "x-plain", "present_match": True}]
    past["typed_per_filter_config"] = {
        manager["http_filters"][0]["name"]: {
            "@type": f"{FILTERS}.ext_proc.v3.ExtProcPerRoute",
            "disabled": True,
        }
    }
    host["routes"].insert(0, past)
    for engine in stack.engines.values():
        resources["listeners"].append(_direct_listener(manager, engine.host, engine.port))
    return json.dumps(config)


def _direct_listener(manager: dict[str, Any], host: str, port: int) -> dict[str, Any]:
    answering = {
        "@type": manager["@type"],
        "stat_prefix": "engine",
        "http_filters": manager["http_filters"][-1:],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    return {
        "name": f"engine-{port}",
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": answering}]}],
    }


class InstantStack(Stack):
    """A stack whose engines are listeners of Envoy itself."""

    def _processes(self) -> Iterator[Process]:
        yield from (process for process in super()._processes() if process.name not in self.engines)

    def _pool(self, common: EngineSettings) -> dict[str, Any]:
        return {**super()._pool(common), "metrics": "off"}

    def _write_envoy_config(self) -> None:
        super()._write_envoy_config()
        self._envoy_file.write_text(instant_engines(self._envoy_file.read_text(), self))


@contextmanager
def running(mode: str, tokenizer: Path) -> Iterator[InstantStack]:
    engine = EngineSettings(tokenizer=tokenizer, model=MODEL, blocks=10_000_000)
    with InstantStack(4, engine=engine, request_body_mode=mode) as stack:
        yield stack


def table(results: dict[str, dict[str, float]]) -> str:
    names = ("plain_ms_p50", "added_ms_p50", "first_turn_ms_p50", "cpu_us", "requests_per_s")
    lines = ["".join(f"{name:>20}" for name in ("body", *names))]
    for size, figures in results.items():
        lines.append(f"{size:>20}" + "".join(f"{figures[name]:>20.2f}" for name in names))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="a few requests, to see that it runs")
    parser.add_argument("--mode", default="BUFFERED")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_TOKENIZER)
    options = parser.parse_args()
    text = lzma.decompress(CORPUS.read_bytes()).decode()
    results = {}
    with running(options.mode, options.tokenizer) as stack:
        pid = stack.processes[HOMING].pid
        assert pid is not None
        address = stack.url.removeprefix("http://")
        for size in QUICK if options.quick else FULL:
            results[f"{size.kilobytes}kb"] = asyncio.run(measure(size, address, pid, text))
            if not options.json:
                print(f"{size.kilobytes} KB measured", file=sys.stderr)
    flat = {f"{name}_{size}": v for size, figures in results.items() for name, v in figures.items()}
    print(json.dumps({"mode": options.mode, **flat}) if options.json else table(results))


if __name__ == "__main__":
    main()
