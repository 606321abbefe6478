"""How much memory do a thousand bodies of a megabyte take, all under way at once?

A Homing in a process of its own, spoken to over gRPC as Envoy does. Every body is on its way before
any is answered:

- BUFFERED: each stream has shown its headers, and then all send their bodies.
- FULL_DUPLEX_STREAMED: all send their bodies but for the end, so that Homing holds what it may
  (`limits.max_held_bytes`; what is above goes on without a pick), and then the ends.

All of it twice, so that what stays can be told from what grows.

rss_start_mib, rss_peak_mib, rss_after_mib: resident memory of Homing, from the kernel; again: of
the second time. held_mib: what Homing counted as held with all bodies in but for their ends.
released: bodies that went on without a pick. Every stream must be answered, as many bytes must come
back as were sent, and no stream is open at the end.

    python benchmarks/memory.py [--json] [--quick]
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.engine import DEMO_TOKENIZER
from extproc.demo.stack import _free_ports
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
MIB = 1024 * 1024
CHUNK = 64 * 1024
MODES = {"BUFFERED": 2, "FULL_DUPLEX_STREAMED": 4}
CONNECTIONS = 4
"""Envoy has one for each of its threads."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many bodies, of so many bytes each."""

    bodies: int
    size: int


FULL = Load(1_000, 1_000_000)
QUICK = Load(40, 1_000_000)


@dataclass(frozen=True, slots=True)
class Homing:
    """A running Homing."""

    pid: int
    listen: str
    admin: str

    def memory_mib(self, what: str) -> float:
        """`VmRSS`: now; `VmHWM`: at most since the start, or since `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(what + ":"))
        return int(line.split()[1]) / 1024

    def forget_peak(self) -> None:
        """The kernel's peak starts from what is resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    async def metric(self, http: aiohttp.ClientSession, name: str) -> float:
        """Sum of a metric's samples."""
        async with http.get(f"http://{self.admin}/metrics") as page:
            families = text_string_to_metric_families(await page.text())
            return sum(s.value for family in families for s in family.samples if s.name == name)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Homing]:
    """`homing serve`, ready; ended at the end."""
    listen, admin = (f"127.0.0.1:{port}" for port in _free_ports(2))
    file = folder / "homing.yaml"
    file.write_text(
        json.dumps(
            {
                "listen": listen,
                "admin": admin,
                "pools": [
                    {
                        "name": "pool",
                        "models": [{"name": "demo-model", "tokenizer": str(DEMO_TOKENIZER)}],
                        "instances": [{"endpoint": f"10.0.0.{n}:8000"} for n in range(1, 5)],
                        "metrics": "off",
                    }
                ],
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "extproc", "serve", "--config", file),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as http:
            while not await _ready(http, admin):
                assert process.returncode is None, "homing did not start"
                await asyncio.sleep(0.05)
        yield Homing(process.pid, listen, admin)
    finally:
        process.kill()
        await process.wait()


async def _ready(http: aiohttp.ClientSession, admin: str) -> bool:
    try:
        async with http.get(f"http://{admin}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


class Request:
    """One HTTP request as Envoy shows it; messages are made once and sent as bytes."""

    def __init__(self, channel: grpc.aio.Channel, mode: str) -> None:
        self._call = channel.stream_stream(
            METHOD, response_deserializer=ProcessingResponse.FromString
        )()
        self._mode = mode

    async def begin(self, headers: bytes) -> None:
        await self._call.write(headers)
        if self._mode == "BUFFERED":
            await self._answer()

    async def send(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            await self._call.write(piece)

    async def finish(self, size: int) -> None:
        """Read the answers to all parts; where the body comes back, all of it must."""
        if self._mode == "BUFFERED":
            answer = await self._answer()
            assert answer.HasField("request_body"), answer
        else:
            await self._answer()
            while size:
                answer = await self._answer()
                size -= len(answer.request_body.response.body_mutation.streamed_response.body)
                assert size >= 0
        await self._call.done_writing()

    async def _answer(self) -> ProcessingResponse:
        answer = await self._call.read()
        assert isinstance(answer, ProcessingResponse), await self._call.details()
        return answer


def opening(mode: str) -> bytes:
    message = ProcessingRequest()
    message.protocol_config.request_body_mode = MODES[mode]  # type: ignore[assignment]
    for key, value in {":method": "POST", ":path": "/v1/chat/completions"}.items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    return message.SerializeToString()


def piece(data: bytes, end: bool) -> bytes:
    message = ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = end
    return message.SerializeToString()


def body(size: int) -> bytes:
    def chat(words: str) -> bytes:
        messages = [{"role": "user", "content": words}]
        return json.dumps({"model": "demo-model", "messages": messages}).encode()

    words = "".join(f"Crate {n} holds {n * 7919 % 10007} bolts. " for n in range(size // 20))
    return chat(words[: size - len(chat(""))])


async def measure(mode: str, load: Load) -> dict[str, float]:
    """One mode, with a Homing of its own."""
    data = body(load.size)
    if mode == "BUFFERED":
        most, last = [], [piece(data, end=True)]
    else:
        cut = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
        most, last = [piece(one, end=False) for one in cut], [piece(b"", end=True)]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with started(Path(folder)) as homing, aiohttp.ClientSession() as http:
            figures["rss_start_mib"] = homing.memory_mib("VmRSS")
            for again in ("", "_again"):
                homing.forget_peak()
                held = await together(homing, http, mode, load, most, last)
                figures[f"rss_peak_mib{again}"] = homing.memory_mib("VmHWM")
                figures[f"rss_after_mib{again}"] = homing.memory_mib("VmRSS")
            figures["held_mib"] = held / MIB
            figures["released"] = await homing.metric(http, "homing_released_total")
    return figures


async def together(
    homing: Homing,
    http: aiohttp.ClientSession,
    mode: str,
    load: Load,
    most: list[bytes],
    last: list[bytes],
) -> float:
    """All bodies at once, until no stream is open; the bytes held before the last messages."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(homing.listen, options))
            for _ in range(CONNECTIONS)
        ]
        requests = [Request(channels[n % CONNECTIONS], mode) for n in range(load.bodies)]
        headers = opening(mode)
        await asyncio.gather(*(request.begin(headers) for request in requests))
        await asyncio.gather(*(request.send(most) for request in requests))
        held = await homing.metric(http, "homing_held_bytes")
        await asyncio.gather(*(_end(request, last, load.size) for request in requests))
        while await homing.metric(http, "homing_open_streams"):  # noqa: ASYNC110 - over there
            await asyncio.sleep(0.05)
    return held


async def _end(request: Request, last: list[bytes], size: int) -> None:
    await request.send(last)
    await request.finish(size)


def table(results: dict[str, dict[str, float]]) -> str:
    names = next(iter(results.values()))
    lines = ["".join(f"{name:>22}" for name in ("mode", *names))]
    for mode, figures in results.items():
        lines.append(f"{mode:>22}" + "".join(f"{value:>22.0f}" for value in figures.values()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="a few bodies, to see that it runs")
    options = parser.parse_args()
    load = QUICK if options.quick else FULL
    results = {mode: asyncio.run(measure(mode, load)) for mode in MODES}
    flat: dict[str, Any] = {"bodies": load.bodies, "body_bytes": load.size}
    for mode, figures in results.items():
        flat |= {f"{name}_{mode.lower()}": value for name, value in figures.items()}
    print(json.dumps(flat) if options.json else table(results))


if __name__ == "__main__":
    main()
