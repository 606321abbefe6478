"""What does it cost to know how 200 engines fare, half of them busy?

A served Homing scrapes engines in another process, each on a port of its own, half of them with a
request in flight, at the default intervals (200 ms busy, 2 s idle). Their page has 50 KB: a real
vLLM's with as many histogram lines as vLLM 0.32 has, served as it is.

- `cpu_share`: of one core, that Homing takes more with metrics than without, over the time.
- `scrape_us`: of Homing's CPU, a scrape. `read_us`: of that, reading the page.
- `engine_us`: of an engine's CPU, to write such a page with prometheus_client, which vLLM uses.
- `digest`: of what was read of the page, to prove equal work.

    python benchmarks/scrape.py [--json] [--quick]
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, Histogram, generate_latest

sys.path.insert(0, str(Path(__file__).parents[1]))

from extproc.config import Config
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.engines.metrics import read_page
from extproc.serve import App
from tests.engines.pages import REAL

HISTOGRAMS, BUCKETS = 30, 19
"""vLLM's families of latency, length and batch size, each about so many lines."""

ENGINES = 200
SECONDS = 20.0
QUICK_ENGINES = 20
QUICK_SECONDS = 1.0


def histograms() -> CollectorRegistry:
    """As many as vLLM has, observed once."""
    registry = CollectorRegistry()
    labels = ("engine", "model_name")
    for number in range(HISTOGRAMS):
        buckets = [float(2**power) for power in range(BUCKETS)]
        text = f"Histogram of what vLLM measures, number {number}."
        name = f"vllm:measured_{number}_seconds"
        family = Histogram(name, text, labels, registry=registry, buckets=buckets)
        family.labels("0", "Qwen/Qwen3-8B").observe(number)
    return registry


def page() -> bytes:
    """The histograms stand before the cache's configuration, as in vLLM."""
    first = REAL.index(b"# TYPE vllm:cache_config_info")
    return REAL[:first] + generate_latest(histograms()) + REAL[first:]


async def serve(count: int, pipe: Connection) -> None:
    """So many engines, on ports that are told through the pipe, until it closes."""
    body = page()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    servers = [await asyncio.start_server(engine, "127.0.0.1", 0) for _ in range(count)]
    pipe.send([server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.to_thread(pipe.poll, None)


def engines(count: int, pipe: Connection) -> None:
    """The process of the engines."""
    uvloop.run(serve(count, pipe))


async def homing(ports: list[int], seconds: float, *, scraping: bool) -> tuple[float, float]:
    """CPU seconds that a Homing takes in that time, and the scrapes that it does."""
    pool = {
        "name": "bench",
        "block_size": 32,
        "models": ({"name": "m", "tokenizer": str(DEMO_TOKENIZER)},),
        "instances": tuple({"endpoint": f"127.0.0.1:{port}"} for port in ports),
        **({} if scraping else {"metrics": "off"}),
    }
    app = App(Config.model_validate({"listen": "127.0.0.1:0", "pools": (pool,)}))
    await app.start()
    (served,) = app.pools
    for instance in served.instances[::2]:
        served.outlook.start(instance.id, 1000.0, time.monotonic())
    await asyncio.sleep(min(3.0, seconds))

    def scrapes() -> float:
        labels = {"pool": "bench", "result": "read"}
        return app.metrics.registry.get_sample_value("homing_scrapes_total", labels) or 0.0

    begun, cpu = scrapes(), time.process_time()
    await asyncio.sleep(seconds)
    cpu, done = time.process_time() - cpu, scrapes() - begun
    await app.stop()
    return cpu, done


def microseconds(calls: int, work: object) -> float:
    """Of this thread's CPU, a call."""
    assert callable(work)
    begun = time.thread_time()
    for _ in range(calls):
        work()
    return (time.thread_time() - begun) / calls * 1e6


def measure(count: int, seconds: float) -> dict[str, object]:
    """All figures."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engines, args=(count, there))
    process.start()
    there.close()
    try:
        ports = here.recv()
        idle, _ = uvloop.run(homing(ports, seconds, scraping=False))
        cpu, scrapes = uvloop.run(homing(ports, seconds, scraping=True))
    finally:
        here.close()
        process.terminate()
        process.join()
    body, registry = page(), histograms()
    read = read_page(body)
    return {
        "engines": count,
        "page_bytes": len(body),
        "scrapes_per_s": round(scrapes / seconds, 1),
        "cpu_share": round((cpu - idle) / seconds, 4),
        "scrape_us": round((cpu - idle) / scrapes * 1e6, 1),
        "read_us": round(microseconds(500, lambda: read_page(body)), 1),
        "engine_us": round(microseconds(20, lambda: generate_latest(registry)), 1),
        "digest": hashlib.sha256(repr(read).encode()).hexdigest()[:16],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="20 engines, one second")
    given = parser.parse_args()
    count, seconds = (QUICK_ENGINES, QUICK_SECONDS) if given.quick else (ENGINES, SECONDS)
    figures = measure(count, seconds)
    if given.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:>14}  {value}")


if __name__ == "__main__":
    main()
