"""A real Envoy, and upstreams that tell what reached them."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

ENVOY = Path(sys.executable).with_name("envoy")


def refusal(bootstrap: str, folder: Path) -> str:
    """What Envoy's own validation says against the bootstrap, "" where it accepts it."""
    file = folder / "envoy.yaml"
    file.write_text(bootstrap)
    run = subprocess.run(
        [ENVOY, "--mode", "validate", "-l", "error", "-c", file],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if run.returncode == 0 else run.stderr


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy. ports: where it accepts clients, by the listener's name."""

    ports: Mapping[str, int]
    admin: str

    @property
    def port(self) -> int:
        """Of the only listener."""
        (port,) = self.ports.values()
        return port

    @property
    def url(self) -> str:
        """Where it accepts clients."""
        return f"http://127.0.0.1:{self.port}"

    async def statistic(self, name: str) -> int | None:
        """A counter or gauge; None while Envoy has none of that name."""
        async with (
            aiohttp.ClientSession(self.admin) as http,
            http.get("/stats", params={"filter": f"^{re.escape(name)}$"}) as answer,
        ):
            _, colon, value = (await answer.text()).partition(":")
            return int(value) if colon else None

    async def until(self, name: str, value: int) -> None:
        """Wait until the statistic has the value."""
        async with asyncio.timeout(20):
            while await self.statistic(name) != value:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_envoy(bootstrap: str, folder: Path) -> AsyncIterator[Envoy]:
    """Run Envoy until the block ends. The bootstrap has listeners and admin on port 0."""
    file, admin_file = folder / "envoy.yaml", folder / "admin"
    file.write_text(bootstrap)
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(ENVOY, "-c", file, "--admin-address-path", admin_file),
            *("--disable-hot-restart", "--concurrency", "1", "-l", "warn"),
            stdout=log,
            stderr=log,
        )
    try:
        while not (admin_file.exists() and admin_file.read_text()):
            assert process.returncode is None, (folder / "envoy.log").read_text()
            await asyncio.sleep(0.02)
        admin = f"http://{admin_file.read_text()}"
        yield Envoy(await _listener_ports(admin), admin)
    finally:
        process.terminate()
        await process.wait()


async def _listener_ports(admin: str) -> dict[str, int]:
    async with aiohttp.ClientSession(admin) as session:
        while True:
            async with session.get("/ready") as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.02)
        async with session.get("/listeners", params={"format": "json"}) as answer:
            listeners = json.loads(await answer.text())
    return {
        one["name"]: one["local_address"]["socket_address"]["port_value"]
        for one in listeners["listener_statuses"]
    }


@dataclass(slots=True)
class Upstream:
    """An HTTP server in an engine's place: answers with its name and with what it was sent."""

    name: str
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """`ip:port`."""
        return f"127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        """Any method, any path."""
        body = await request.read()
        seen = {
            "served_by": self.name,
            "path": request.path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body_bytes": len(body),
        }
        self.requests.append(seen)
        return web.json_response(seen)


@asynccontextmanager
async def upstreams(*names: str) -> AsyncIterator[list[Upstream]]:
    """One upstream a name, on free loopback ports."""
    started, runners = [], []
    try:
        for name in names:
            upstream = Upstream(name)
            app = web.Application(client_max_size=100 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", upstream.answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            upstream.port = runner.addresses[0][1]
            started.append(upstream)
        yield started
    finally:
        for runner in runners:
            await runner.cleanup()
