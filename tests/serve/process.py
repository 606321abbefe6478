"""`homing serve` as a process of its own."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import aiohttp
import grpc

from extproc.demo.engine import DEMO_TOKENIZER
from extproc.demo.stack import _free_ports
from tests.serve.proxy import ENDPOINTS, MODEL

PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Homing:
    """A running Homing. config: as it was written to the file."""

    process: asyncio.subprocess.Process
    config: dict[str, Any]
    file: Path
    log: Path

    @property
    def admin(self) -> str:
        return f"http://{self.config['admin']}"

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        return grpc.aio.insecure_channel(
            self.config["listen"], options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


def configuration(**changes: Any) -> dict[str, Any]:
    """Three instances that nobody runs, on free ports."""
    listen, admin = _free_ports(2)
    instances = [{"name": name, "endpoint": endpoint} for name, endpoint in ENDPOINTS.items()]
    model = {"name": MODEL, "tokenizer": str(DEMO_TOKENIZER)}
    return {
        "listen": f"127.0.0.1:{listen}",
        "admin": f"127.0.0.1:{admin}",
        "explain": True,
        "limits": {"pick_timeout_ms": 20_000},
        "envoy": {"message_timeout_ms": 30_000},
        "pools": [{"name": "test", "models": [model], "instances": instances, "metrics": "off"}],
        **changes,
    }


@asynccontextmanager
async def started(folder: Path, **changes: Any) -> AsyncIterator[Homing]:
    """Start it, ready or not; what is left of it at the end is killed."""
    file, log = folder / "homing.yaml", folder / "homing.log"
    config = configuration(**changes)
    file.write_text(json.dumps(config))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc", "serve", "--config", str(file)),
            stdout=output,
            stderr=output,
        )
    try:
        yield Homing(process, config, file, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncIterator[Homing]:
    """One that is ready."""
    async with started(folder, **changes) as homing, asyncio.timeout(PATIENCE_S):
        while await readiness(homing) != 200:
            assert homing.process.returncode is None, homing.log.read_text()
            await asyncio.sleep(0.02)
        yield homing


async def readiness(homing: Homing) -> int | None:
    """Of the admin port; None where nobody listens."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{homing.admin}/readyz") as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return None


async def draining(homing: Homing) -> None:
    """Ask it to end, and wait until it has begun to."""
    homing.process.send_signal(SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        while await readiness(homing) == 200:
            await asyncio.sleep(0.01)
