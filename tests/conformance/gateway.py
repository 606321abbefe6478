"""A real Envoy between a client and engines, wired to Homing in either of the two ways."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import uuid4

import aiohttp
from aiohttp import web
from ruamel.yaml import YAML

from extproc.config import Config, EnvoyOptions
from extproc.envoy import bootstrap_yaml
from extproc.serve import App
from tests.conformance.wire import pool_of
from tests.envoy_config.configs import dead_port
from tests.envoy_config.running import Envoy, running_envoy
from tests.serve.proxy import CHAT, chat

Wiring: TypeAlias = Literal["override_host", "original_dst"]
WIRINGS: tuple[Wiring, ...] = ("override_host", "original_dst")
MODES = ("BUFFERED", "FULL_DUPLEX_STREAMED")

QUESTION = "Which ship came in?"

(ORIGINAL_DST,) = re.findall(
    r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "trust.md").read_text(), re.DOTALL
)
"""The cluster that goes to whatever address a header names, as the page has it."""

BYPASSED = "/bypassed"
"""A route on which Envoy does not ask Homing."""


@dataclass(slots=True)
class Engine:
    """An HTTP server in an engine's place, and the headers of what reached it."""

    endpoint: str
    requests: list[Mapping[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.requests.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"served_by": self.endpoint})


@asynccontextmanager
async def engines(*ips: str) -> AsyncIterator[list[Engine]]:
    """One engine an ip, each on a free port of it."""
    async with AsyncExitStack() as stack:
        started = []
        for ip in ips:
            engine = Engine("")
            app = web.Application(client_max_size=100 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", engine.answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, ip, 0).start()
            engine.endpoint = f"{ip}:{runner.addresses[0][1]}"
            started.append(engine)
        yield started


@dataclass(slots=True)
class Gateway:
    """Envoy, and the Homing behind it: None where it is down."""

    envoy: Envoy
    app: App | None

    async def stop_homing(self) -> None:
        """Homing goes away, and Envoy has noticed it."""
        assert self.app is not None
        await self.app.stop()
        self.app = None
        await self.envoy.until("cluster.homing.membership_healthy", 0)


@asynccontextmanager
async def gateway(
    folder: Path,
    config: Config,
    *,
    up: bool = True,
    wiring: Wiring = "override_host",
    mode: str = "BUFFERED",
    strip: bool = True,
) -> AsyncIterator[Gateway]:
    """Envoy as `homing envoy-config` writes it, with a route more, and wired as is asked for.

    up: whether Homing runs. strip: whether Envoy removes control headers of clients.
    """
    async with AsyncExitStack() as stack:
        app: App | None = None
        if up:
            app = App(config)
            picker = f"127.0.0.1:{await app.start()}"
        else:
            picker = stack.enter_context(dead_port())
        options = EnvoyOptions(
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            pickers=(picker,),
            request_body_mode=mode,  # type: ignore[arg-type]
            message_timeout_ms=30_000,
        )
        written = bootstrap_yaml(config.model_copy(update={"envoy": options}))
        envoy = await stack.enter_async_context(
            running_envoy(_rewired(written, wiring, strip), folder)
        )
        await envoy.until("cluster.homing.membership_healthy", int(up))
        running = Gateway(envoy, app)
        try:
            yield running
        finally:
            if running.app is not None:
                await running.app.stop()


def _rewired(bootstrap: str, wiring: Wiring, strip: bool) -> str:
    yaml = YAML(typ="safe")
    root = yaml.load(bootstrap)
    (listener,) = root["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    routes = host["routes"]
    package = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3"
    bypassed = {
        **routes[0],
        "match": {"prefix": BYPASSED},
        "typed_per_filter_config": {
            "envoy.filters.http.ext_proc": {"@type": f"{package}.ExtProcPerRoute", "disabled": True}
        },
    }
    host["routes"] = [bypassed, *routes]
    if not strip:
        del manager["early_header_mutation_extensions"]
    if wiring == "original_dst":
        clusters: list[dict[str, Any]] = root["static_resources"]["clusters"]
        (place,) = (n for n, cluster in enumerate(clusters) if cluster["name"] == "engines")
        clusters[place] = yaml.load(ORIGINAL_DST)
    out = StringIO()
    yaml.dump(root, out)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client got. served_by: as the engine itself says, None where none answered."""

    status: int
    headers: Mapping[str, str]
    served_by: str | None


async def send(
    http: aiohttp.ClientSession,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    prefix: str = "",
) -> Reply:
    """A chat, or a GET where there is no body."""
    method, path = ("GET", "/v1/models") if body is None else ("POST", CHAT)
    async with http.request(method, prefix + path, data=body, headers=headers) as answer:
        said = await answer.json() if answer.status == 200 else {}
        return Reply(answer.status, answer.headers, said.get("served_by"))


async def send_many(
    http: aiohttp.ClientSession, count: int, headers: Mapping[str, str], at_once: int = 10
) -> list[Reply]:
    """Chats that are at home nowhere, since each has a salt of its own; some at a time."""
    room = asyncio.Semaphore(at_once)

    async def one() -> Reply:
        async with room:
            return await send(http, chat(QUESTION, cache_salt=uuid4().hex), headers)

    return await asyncio.gather(*(one() for _ in range(count)))


def pool(listed: Sequence[Engine], *, conformance: bool = False, **changes: Any) -> Config:
    """One pool with these engines."""
    return pool_of(*(one.endpoint for one in listed), conformance=conformance, **changes)
