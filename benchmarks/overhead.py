"""What does a pick cost, through real Envoy?

Later turns of conversations of 2, 100 and 400 KB go through one Envoy in three ways that alternate:
with the pick, to a processor that gives every request one answer (what the protocol costs by
itself), and past the filter. Engines answer at once (Envoy's own direct responses), so that the
differences are Homing and the protocol. First in BUFFERED, then in FULL_DUPLEX_STREAMED.

added_ms_p50: median with the pick less median past the filter, one request at a time. cpu_us:
Homing's CPU a request at concurrency 16, all its threads, from the kernel's schedstat. protocol_*:
the same of the processor that only answers. first_turn_ms_p50: all of it, of a conversation
never seen. stage_*_us: mean time of a stage, one request at a time, by Homing's own metrics, which
also say that the prefix of each was found: a run in which it was not fails. ratio_*: full duplex to
BUFFERED.

    python benchmarks/overhead.py [--json] [--quick] [--mode BUFFERED] [--unix] [--tokenizer DIR]

--mode measures one mode only; --unix has Envoy reach Homing over a Unix socket.
"""

import argparse
import asyncio
import json
import lzma
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from extproc.demo.engine import DEMO_TOKENIZER, EngineSettings
from extproc.demo.processes import Process
from extproc.demo.stack import HOMING, HOST, Stack
from extproc.poller import CHOICE, VARIABLE

CORPUS = DEMO_TOKENIZER.parent / "corpus" / "topics.txt.xz"
MODEL = "demo-model"
CONCURRENCY = 16
FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
BUFFERED, DUPLEX = MODES = ("BUFFERED", "FULL_DUPLEX_STREAMED")
PICKED, CONSTANT, PAST = WAYS = ("picked", "constant", "past")
"""Which way a request goes: its header `x-way`."""
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
WARM_UP = Size(2, 60, 4)
"""Before anything is measured: the interpreter specialises what is run often."""


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

    async def post(self, body: bytes, way: str) -> float:
        """One request: milliseconds."""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            f"content-type: application/json\r\nx-way: {way}\r\n\r\n"
        )
        start = time.perf_counter()
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        took = (time.perf_counter() - start) * 1000
        assert answer.startswith("HTTP/1.1 200"), answer
        assert "content-length: 0" in answer, answer
        return took

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


class Measured:
    """Homing, the processor that only answers, and the Envoy in front of them."""

    def __init__(self, stack: "InstantStack") -> None:
        homing = stack.processes[HOMING].pid
        assert homing is not None
        self.address = stack.url.removeprefix("http://")
        self.pids = {PICKED: homing, CONSTANT: stack.constant.pid}
        self._metrics = stack.admin_url + "/metrics"
        self._envoy = (
            stack.envoy_admin_url + "/stats?filter=^cluster.constant.upstream_rq_completed"
        )

    def homing(self) -> dict[tuple[str, str], float]:
        """Homing's metrics that are needed, by name and label."""
        with urllib.request.urlopen(self._metrics) as page:
            text = page.read().decode()
        return {
            (sample.name, sample.labels.get("why") or sample.labels.get("stage", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.name in ("homing_picks", "homing_stage_seconds")
            and not sample.name.endswith("_bucket")
        }

    def constant(self) -> int:
        """Requests that the processor that only answers has had."""
        with urllib.request.urlopen(self._envoy) as page:
            return int(page.read().decode().rpartition(":")[2] or 0)


class Checked:
    """A part of the measurement: that its requests went as they should, and its stages' times."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._before = measured.homing(), measured.constant()

    def end(self, picked: int, constant: int) -> dict[str, float]:
        """Mean microseconds of each stage. The numbers: of requests each way."""
        before, constant_before = self._before
        now = self._measured.homing()
        gone = {key: value - before.get(key, 0) for key, value in now.items()}
        picks = {why: n for (name, why), n in gone.items() if name == "homing_picks_total" and n}
        assert picks == {"home": picked}, picks
        assert self._measured.constant() - constant_before == constant
        return {
            f"stage_{stage}_us": seconds / gone["homing_stage_seconds_count", stage] * 1e6
            for (name, stage), seconds in gone.items()
            if name == "homing_stage_seconds_sum" and gone["homing_stage_seconds_count", stage]
        }


async def measure(size: Size, measured: Measured, text: str) -> dict[str, float]:
    """One body size: later turns alone, in all ways; then with and without a pick, 16 at a time."""
    words = random.Random(size.kilobytes)
    talks = [Talk(words, text, size.kilobytes) for _ in range(size.conversations)]
    connection = await Connection.open(measured.address)
    first = [await connection.post(talk.body(), PICKED) for talk in talks]
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    alone = Checked(measured)
    for _ in range(size.turns):
        for talk in talks:
            body = talk.body()
            for way in (PAST, CONSTANT, PICKED):
                took[way].append(await connection.post(body, way))
    connection.close()
    count = size.turns * size.conversations
    stages = alone.end(count, count)
    past, constant, picked = (median(took[way]) for way in (PAST, CONSTANT, PICKED))
    return {
        "first_turn_ms_p50": median(first),
        "plain_ms_p50": past,
        "picked_ms_p50": picked,
        "added_ms_p50": picked - past,
        "protocol_added_ms_p50": constant - past,
        **await loaded(size, measured, talks),
        **stages,
    }


async def loaded(size: Size, measured: Measured, talks: Sequence[Talk]) -> dict[str, float]:
    """Sixteen at a time: a turn of all conversations by turns with the pick and without."""
    cpu = dict.fromkeys((PICKED, CONSTANT), 0)
    seconds = dict.fromkeys(cpu, 0.0)
    together = Checked(measured)
    for _ in range(size.turns):
        bodies = [talk.body() for talk in talks]
        for way in (CONSTANT, PICKED):
            before, start = cpu_ns(measured.pids[way]), time.perf_counter()
            await post_all(measured.address, bodies, way)
            seconds[way] += time.perf_counter() - start
            cpu[way] += cpu_ns(measured.pids[way]) - before
    count = size.turns * size.conversations
    together.end(count, count)
    return {
        "cpu_us": cpu[PICKED] / count / 1000,
        "protocol_cpu_us": cpu[CONSTANT] / count / 1000,
        "requests_per_s": count / seconds[PICKED],
    }


def cpu_ns(pid: int) -> int:
    """Time on a CPU of all threads of a process, as the kernel's scheduler counts it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


async def post_all(address: str, bodies: Sequence[bytes], way: str) -> None:
    waiting = list(reversed(bodies))

    async def client() -> None:
        connection = await Connection.open(address)
        while waiting:
            await connection.post(waiting.pop(), way)
        connection.close()

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))


def instant_engines(envoy_yaml: str, stack: "InstantStack") -> str:
    """The stack's Envoy, with engines that answer at once and the two other ways."""
    config: dict[str, Any] = YAML(typ="safe").load(envoy_yaml)
    resources = config["static_resources"]
    listener = resources["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    ext_proc = manager["http_filters"][0]
    grpc_service = json.loads(json.dumps(ext_proc["typed_config"]["grpc_service"]))
    grpc_service["envoy_grpc"]["cluster_name"] = CONSTANT
    host = manager["route_config"]["virtual_hosts"][0]
    first = host["routes"][0]
    host["routes"] = [
        _way(first, CONSTANT, ext_proc["name"], {"overrides": {"grpc_service": grpc_service}}),
        _way(first, PAST, ext_proc["name"], {"disabled": True}),
        *host["routes"],
    ]
    homing = next(one for one in resources["clusters"] if one["name"] == HOMING)
    resources["clusters"].append(_constant_cluster(homing, stack.constant.port))
    for engine in stack.engines.values():
        resources["listeners"].append(_direct_listener(manager, engine.host, engine.port))
    return json.dumps(config)


def _way(route: Mapping[str, Any], way: str, name: str, per_route: Mapping[str, Any]) -> Any:
    """The route for requests with this `x-way`, and what the filter does on it."""
    made = json.loads(json.dumps(route))
    made["match"] = {
        "prefix": "/",
        "headers": [{"name": "x-way", "string_match": {"exact": way}}],
    }
    kind = f"{FILTERS}.ext_proc.v3.ExtProcPerRoute"
    made["typed_per_filter_config"] = {name: {"@type": kind, **per_route}}
    return made


def _constant_cluster(homing: Mapping[str, Any], port: int) -> Any:
    """Homing's cluster, but for where it is and its health checks."""
    made = json.loads(json.dumps(homing))
    del made["health_checks"]
    address = {"socket_address": {"address": HOST, "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    made["name"] = CONSTANT
    made["load_assignment"] = {"cluster_name": CONSTANT, "endpoints": endpoints}
    return made


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


class Constant:
    """The processor that only answers, in a process of its own."""

    def __init__(self, endpoint: str) -> None:
        script = str(Path(__file__).with_name("_constant_picker.py"))
        self._child = subprocess.Popen(
            [sys.executable, script, endpoint],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, VARIABLE: CHOICE},  # as `homing serve` chooses
        )
        self.pid = self._child.pid
        assert self._child.stdout is not None
        self.port = int(self._child.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.communicate()


class InstantStack(Stack):
    """A stack whose engines are listeners of Envoy itself. unix: Homing listens on a socket."""

    constant: Constant

    def listen_on_unix_socket(self) -> None:
        """To be called before it is entered."""
        path = f"unix:{self.folder}/homing.sock"
        self.replicas = tuple(replace(one, listen=path) for one in self.replicas)
        self.config["envoy"]["pickers"] = [path]

    def _processes(self) -> Iterator[Process]:
        yield from (process for process in super()._processes() if process.name not in self.engines)

    def _pool(self, common: EngineSettings) -> dict[str, Any]:
        return {**super()._pool(common), "metrics": "off"}

    def _write_envoy_config(self) -> None:
        super()._write_envoy_config()
        self._envoy_file.write_text(instant_engines(self._envoy_file.read_text(), self))


@contextmanager
def running(mode: str, tokenizer: Path, unix: bool) -> Iterator[Measured]:
    engine = EngineSettings(tokenizer=tokenizer, model=MODEL, blocks=1_000_000)
    config = {"explain": False}
    stack = InstantStack(4, engine=engine, request_body_mode=mode, config=config)
    if unix:
        stack.listen_on_unix_socket()
    first = next(iter(stack.engines.values()))
    stack.constant = Constant(f"{first.host}:{first.port}")
    try:
        with stack:
            yield Measured(stack)
    finally:
        stack.constant.close()


def measure_mode(
    mode: str, sizes: Sequence[Size], tokenizer: Path, unix: bool, text: str
) -> dict[str, dict[str, float]]:
    """The figures of each size, by its name."""
    results = {}
    with running(mode, tokenizer, unix) as measured:
        if sizes is not QUICK:
            asyncio.run(measure(WARM_UP, measured, text))
        for size in sizes:
            results[f"{size.kilobytes}kb"] = asyncio.run(measure(size, measured, text))
            print(f"{mode}, {size.kilobytes} KB measured", file=sys.stderr)
    return results


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    names = (
        *("plain_ms_p50", "added_ms_p50", "protocol_added_ms_p50", "first_turn_ms_p50"),
        *("cpu_us", "protocol_cpu_us", "requests_per_s"),
    )
    lines = [f"{'body':>6}" + "".join(f"{name:>23}" for name in names)]
    for size, figures in results.items():
        lines.append(f"{size:>6}" + "".join(f"{figures[name]:>23.2f}" for name in names))
    found = {name: None for figures in results.values() for name in figures}
    stages = [name for name in found if name.startswith("stage_")]
    lines += ["", f"{'body':>6}" + "".join(f"{name:>20}" for name in stages)]
    for size, figures in results.items():
        lines.append(f"{size:>6}" + "".join(f"{figures.get(name, 0):>20.1f}" for name in stages))
    return "\n".join(lines)


def flat(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """All figures by one name each; those of full duplex say so."""
    found = {
        ("full_duplex_" if mode == DUPLEX else "") + f"{name}_{size}": value
        for mode, sizes in results.items()
        for size, figures in sizes.items()
        for name, value in figures.items()
    }
    if len(results) == len(MODES):
        for size in results[BUFFERED]:
            for name in ("added_ms_p50", "cpu_us"):
                figure = f"{name}_{size}"
                found[f"ratio_{figure}"] = found[f"full_duplex_{figure}"] / found[figure]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="a few requests, to see that it runs")
    parser.add_argument("--mode", choices=MODES, action="append", help="this one only")
    parser.add_argument("--unix", action="store_true", help="Envoy reaches Homing by a socket file")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_TOKENIZER)
    options = parser.parse_args()
    text = lzma.decompress(CORPUS.read_bytes()).decode()
    sizes = QUICK if options.quick else FULL
    results = {
        mode: measure_mode(mode, sizes, options.tokenizer, options.unix, text)
        for mode in options.mode or MODES
    }
    if options.json:
        print(json.dumps(flat(results), indent=1))
        return
    for mode, figures in results.items():
        print(f"{mode}\n{table(figures)}\n")


if __name__ == "__main__":
    main()
