"""The bootstrap for full duplex, where Envoy doubles what ends in trailers if the route retries."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from extproc.envoy import bootstrap_yaml
from tests.e2e.http_client import Cut, Reply, client
from tests.e2e.http_engine import Engines, engines
from tests.envoy_config.configs import config, dead_port
from tests.envoy_config.pickers import homing
from tests.envoy_config.running import Envoy, running_envoy

VERSIONS = ("HTTP/1.1", "HTTP/2")
TRAILERS = (("x-checksum", "abc"),)
BODY = json.dumps(
    {"model": "model-0", "messages": [{"role": "user", "content": "and so on " * 5_000}]}
).encode()
CLAIM = ("x-downstream-protocol", "HTTP/1.1")


@asynccontextmanager
async def full_duplex(
    folder: Path, dead: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Envoy, Engines]]:
    """What we ship; Homing, and engines of which some are down."""
    async with engines(1) as behind:
        endpoints = [*dead, *behind.endpoints]
        async with homing(config(endpoints, listen="127.0.0.1:0")) as picker:
            settings = config(endpoints, pickers=[picker], request_body_mode="FULL_DUPLEX_STREAMED")
            async with running_envoy(bootstrap_yaml(settings), folder) as envoy:
                await envoy.until("cluster.homing.membership_healthy", 1)
                yield envoy, behind


async def post(envoy: Envoy, version: str, case: str) -> Reply:
    """A body in pieces, its length not said, with trailers; the client lies about its protocol."""
    async with client(version, envoy.port) as clients:
        framing = [("transfer-encoding", "chunked")] if clients.chunked else []
        exchange = await clients.exchange()
        said = [("host", "engines"), ("x-do", "echo"), ("x-case", case), CLAIM]
        await exchange.head("POST", "/v1/chat/completions", [*said, *framing])
        for at in range(0, len(BODY), 7_000):
            await exchange.data(BODY[at : at + 7_000])
        await exchange.end(TRAILERS)
        while await exchange.piece() is not None:
            pass
        return exchange.reply


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_body_that_ends_in_trailers_comes_once(version: str, tmp_path: Path) -> None:
    async with full_duplex(tmp_path) as (envoy, behind):
        reply = await post(envoy, version, "case")
        (seen,) = behind.seen["case"]
    assert (reply.status, seen.body == BODY, reply.body == BODY) == (200, True, True)
    assert seen.trailers == (dict(TRAILERS) if version == "HTTP/2" else {})
    assert CLAIM[0] not in seen.headers
    assert len(seen.picks) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_may_have_trailers_is_not_repeated(version: str, tmp_path: Path) -> None:
    repeated = version == "HTTP/1.1"
    with dead_port() as dead:
        async with full_duplex(tmp_path, (dead,)) as (envoy, behind):
            statuses = []
            for case in map(str, range(4)):
                try:
                    statuses.append((await post(envoy, version, case)).status)
                except Cut:
                    statuses.append(503)
            assert (set(statuses) == {200}) == repeated, statuses
            assert all(seen.body == BODY for (seen,) in behind.seen.values())
            assert bool(await envoy.statistic("cluster.engines.upstream_rq_retry")) == repeated
