"""One Envoy that has a listener for each way of showing bodies to Homing."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from extproc.config import Limits, Proxy
from extproc.envoy import bootstrap_yaml
from extproc.serve import App
from tests.e2e.http_engine import Engines, engines
from tests.envoy_config.configs import config
from tests.envoy_config.running import Envoy, running_envoy

MIB = 1024 * 1024
FDS = "FULL_DUPLEX_STREAMED"


@dataclass(frozen=True, slots=True)
class Mode:
    """How Envoy shows bodies.

    buffer_bytes: what Envoy buffers of a body.
    overrides: Homing may ask for other modes.
    early: bodies do not wait for the answer to the headers.
    observed: Homing is only told.
    retries: as we ship it; False has no retry policy on the route.
    """

    request: str
    response: str
    buffer_bytes: int = 40 * MIB
    overrides: bool = False
    early: bool = False
    observed: bool = False
    retries: bool = True

    def __str__(self) -> str:
        names = ("overrides", "early", "observed")
        flags = [name for name in names if getattr(self, name)]
        flags += [] if self.retries else ["once"]
        return "-".join([self.request, self.response, *flags])

    def reads(self, size: int) -> bool | None:
        """Whether Homing sees a body of so many bytes, whole and before it picks.

        None: sometimes. What comes in at one stroke is not cut, however large.
        """
        match self.request:
            case "NONE" | "STREAMED":
                return self.overrides or (self.early and size <= MIB)
            case "BUFFERED_PARTIAL":
                return True if size <= self.buffer_bytes else None
            case _:
                return True

    @property
    def doubles_before_trailers(self) -> bool:
        """Envoy 1.40 has kept the body for a retry, and sends that too when trailers follow.

        See envoyproxy/envoy issue 45470; not where the route has no retry policy.
        """
        return self.request == FDS and self.retries

    @property
    def shows_answer_trailers(self) -> bool:
        """Without them Envoy 1.40 ends a stream of these modes with the answer's headers."""
        return FDS in (self.request, self.response) or self.request == "NONE"

    @property
    def shows_the_end(self) -> bool:
        """Whether Homing sees when an answer ends, so that it knows the load until then."""
        return not (self.early and self.response == "NONE")

    @property
    def shows_at_once(self) -> bool:
        """Whether the client gets a piece of an answer before its end."""
        return not self.response.startswith("BUFFERED")

    def of(self, listener: dict[str, Any]) -> dict[str, Any]:
        """The listener that we ship, in this mode."""
        mine = copy.deepcopy(listener)
        mine["name"] = str(self)
        mine["per_connection_buffer_limit_bytes"] = self.buffer_bytes
        (chain,) = mine["filter_chains"]
        manager = chain["filters"][0]["typed_config"]
        manager["upgrade_configs"] = [{"upgrade_type": "websocket"}]
        filter_ = manager["http_filters"][0]["typed_config"]
        filter_["processing_mode"] = {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": self.request,
            "response_body_mode": self.response,
            "request_trailer_mode": "SEND" if self.request == FDS or self.early else "SKIP",
            "response_trailer_mode": "SEND" if self.shows_answer_trailers else "SKIP",
        }
        filter_["allow_mode_override"] = self.overrides
        filter_["send_body_without_waiting_for_header_response"] = self.early
        if self.observed:
            filter_["observability_mode"] = True
            filter_["deferred_close_timeout"] = "0.1s"  # how long Envoy keeps the stream after all
        if not self.retries:
            del manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"]
        if self.overrides:
            filter_["grpc_service"]["envoy_grpc"]["cluster_name"] = "homing-that-overrides"
        return mine


MODES = (
    Mode("BUFFERED", "NONE"),
    Mode(FDS, "NONE"),
    Mode("BUFFERED_PARTIAL", "BUFFERED_PARTIAL", buffer_bytes=MIB),
    Mode("STREAMED", "STREAMED"),
    Mode(FDS, FDS),
    Mode("NONE", "NONE"),
    Mode(FDS, "NONE", retries=False),
    Mode("BUFFERED", FDS),
    Mode("BUFFERED", "STREAMED"),
    Mode("BUFFERED", "BUFFERED"),
    Mode("BUFFERED_PARTIAL", "NONE", buffer_bytes=MIB),
    Mode("STREAMED", "NONE"),
    Mode("STREAMED", FDS),
    Mode(FDS, "STREAMED"),
    Mode("NONE", "STREAMED"),
    Mode("STREAMED", "NONE", early=True),
    Mode("STREAMED", "STREAMED", overrides=True),
    Mode("NONE", "NONE", overrides=True),
    Mode("BUFFERED", "NONE", overrides=True),
    Mode("STREAMED", "STREAMED", observed=True),
)
"""All that a configuration may say, short of what is the same in every code path."""

OFTEN = MODES[:7]
"""Enough to see every state of both sides; the rest is for the slow run."""


@dataclass(slots=True)
class Gateway:
    """Envoy, the two Homings that it asks, and the engines."""

    envoy: Envoy
    engines: Engines
    homing: App
    overriding: App

    def port(self, mode: Mode) -> int:
        """Where Envoy serves clients in this mode."""
        return self.envoy.ports[str(mode)]

    def app(self, mode: Mode) -> App:
        """Who picks in this mode."""
        return self.overriding if mode.overrides else self.homing

    async def settles(self) -> None:
        """Wait until nothing is left of any request, and see that nobody broke the protocol."""
        async with asyncio.timeout(20):
            while any(map(_busy, (self.homing, self.overriding))):
                await asyncio.sleep(0.01)
            await self.envoy.until("http.clients.downstream_rq_active", 0)
        for app in (self.homing, self.overriding):
            for family in app.metrics.registry.collect():
                if family.name in ("homing_streams_cut", "homing_internal_errors"):
                    assert family.samples == []


def _busy(app: App) -> bool:
    return bool(
        app.processor.open_streams
        or app.processor.held_bytes
        or any(pool.load.in_flight for pool in app.pools)
    )


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[Gateway]:
    """All of it, on loopback."""
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(engines(2))
        homing = await stack.enter_async_context(_homing(behind, mode_override=False))
        overriding = await stack.enter_async_context(_homing(behind, mode_override=True))
        bootstrap = _bootstrap(behind, homing[1], overriding[1])
        envoy = await stack.enter_async_context(running_envoy(bootstrap, folder))
        for cluster in ("homing", "homing-that-overrides"):
            await envoy.until(f"cluster.{cluster}.membership_healthy", 1)
        yield Gateway(envoy, behind, homing[0], overriding[0])


@asynccontextmanager
async def _homing(behind: Engines, mode_override: bool) -> AsyncIterator[tuple[App, int]]:
    settings = config(behind.endpoints, listen="127.0.0.1:0").model_copy(
        update={
            "explain": True,
            "proxy": Proxy(mode_override=mode_override),
            "limits": Limits(pick_timeout_ms=20_000),
        }
    )
    app = App(settings)
    port = await app.start()
    try:
        yield app, port
    finally:
        await app.stop()


def _bootstrap(behind: Engines, homing: int, overriding: int) -> str:
    """What we ship, with a listener for each mode."""
    pickers = [f"127.0.0.1:{homing}"]
    settings = config(behind.endpoints, pickers=pickers, message_timeout_ms=30_000)
    shipped = yaml.safe_load(bootstrap_yaml(settings))
    resources = shipped["static_resources"]
    (listener,) = resources["listeners"]
    resources["listeners"] = [mode.of(listener) for mode in MODES]
    cluster = next(one for one in resources["clusters"] if one["name"] == "homing")
    other = copy.deepcopy(cluster)
    other["name"] = other["load_assignment"]["cluster_name"] = "homing-that-overrides"
    (host,) = other["load_assignment"]["endpoints"][0]["lb_endpoints"]
    host["endpoint"]["address"]["socket_address"]["port_value"] = overriding
    resources["clusters"].append(other)
    return yaml.safe_dump(shipped)
