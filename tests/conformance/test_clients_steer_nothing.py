"""No header of a client chooses an engine, however Envoy is wired and whether Homing runs.

docs/trust.md says what each wiring relies on.
"""

from pathlib import Path

import aiohttp
import pytest

from extproc.stream.headers import CONTROL_HEADERS
from tests.conformance.gateway import (
    BYPASSED,
    MODES,
    QUESTION,
    WIRINGS,
    Engine,
    Wiring,
    engines,
    gateway,
    pool,
    send,
    send_many,
)
from tests.conformance.wire import SERVED
from tests.serve.proxy import DESTINATION, chat

IPS = ("127.0.0.11", "127.0.0.12")
STRANGER = "127.0.0.99"

UNASKED = [(False, ""), (False, BYPASSED), (True, BYPASSED)]
UNASKED_IDS = ["down", "down and bypassed", "bypassed"]
"""Whether Homing runs, and the route that is asked for."""


def steering(engine: Engine) -> dict[str, str]:
    """Every control header, with this engine in it."""
    headers = dict.fromkeys(CONTROL_HEADERS, engine.endpoint)
    return {name.title(): value for name, value in headers.items()} | {"X-Homing-Pool": "other"}


def untouched_by_clients(engine: Engine) -> bool:
    """Whether no control header reached the engine but the pick."""
    control = {*CONTROL_HEADERS, "x-homing-pool"} - {DESTINATION}
    return not any(control & headers.keys() for headers in engine.requests)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wiring", WIRINGS)
async def test_with_homing_up_only_the_pick_chooses(
    wiring: Wiring, mode: str, tmp_path: Path
) -> None:
    async with (
        engines(*IPS, STRANGER) as (first, second, stranger),
        gateway(tmp_path, pool([first, second], fallbacks=1), wiring=wiring, mode=mode) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        for wanted in (first, stranger):
            replies = await send_many(http, 20, steering(wanted))
            replies += [await send(http, headers=steering(wanted)) for _ in range(4)]
            assert {reply.status for reply in replies} == {200}
            assert {reply.served_by for reply in replies} == {first.endpoint, second.endpoint}
            assert not any(SERVED in reply.headers for reply in replies)
        for engine in (first, second):
            assert untouched_by_clients(engine)
            assert {headers[DESTINATION] for headers in engine.requests} == {engine.endpoint}
        assert not stranger.requests


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("up", "prefix"), UNASKED, ids=UNASKED_IDS)
async def test_where_homing_is_not_asked_requests_are_balanced(
    up: bool, prefix: str, mode: str, tmp_path: Path
) -> None:
    async with (
        engines(*IPS, STRANGER) as (first, second, stranger),
        gateway(tmp_path, pool([first, second]), up=up, mode=mode) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        for wanted in (first, stranger):
            served = set()
            for number in range(20):
                body = chat(QUESTION) if number % 2 else None
                reply = await send(http, body, steering(wanted), prefix)
                assert reply.status == 200
                served.add(reply.served_by)
            assert served == {first.endpoint, second.endpoint}
        for engine in (first, second):
            assert untouched_by_clients(engine)
            assert not any(DESTINATION in headers for headers in engine.requests)
        assert not stranger.requests


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("up", "prefix"), UNASKED, ids=UNASKED_IDS)
async def test_where_homing_is_not_asked_a_cluster_that_follows_a_header_has_nowhere_to_go(
    up: bool, prefix: str, mode: str, tmp_path: Path
) -> None:
    async with (
        engines(IPS[0], STRANGER) as (first, stranger),
        gateway(
            tmp_path, pool([first], fallbacks=1), up=up, mode=mode, wiring="original_dst"
        ) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        for body in (chat(QUESTION), None):
            reply = await send(http, body, steering(stranger), prefix)
            assert reply.status == 503
        assert not first.requests
        assert not stranger.requests


async def test_where_envoy_removes_no_headers_a_cluster_that_follows_one_obeys_any_client(
    tmp_path: Path,
) -> None:
    async with (
        engines(IPS[0], STRANGER) as (first, stranger),
        gateway(
            tmp_path, pool([first], fallbacks=1), wiring="original_dst", strip=False
        ) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        reply = await send(http, None, {DESTINATION: stranger.endpoint}, BYPASSED)
        assert reply.served_by == stranger.endpoint


async def test_where_envoy_removes_no_headers_homing_still_does(tmp_path: Path) -> None:
    async with (
        engines(*IPS, STRANGER) as (first, second, stranger),
        gateway(tmp_path, pool([first, second]), strip=False) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        replies = await send_many(http, 20, steering(first))
        replies += [await send(http, headers=steering(stranger)) for _ in range(4)]
        assert {reply.served_by for reply in replies} == {first.endpoint, second.endpoint}
        assert untouched_by_clients(first)
        assert untouched_by_clients(second)
        for prefix in ("", BYPASSED):
            await send(http, None, steering(stranger), prefix)
        assert not stranger.requests


async def test_a_conformance_run_trusts_clients_with_nothing_but_the_selection(
    tmp_path: Path,
) -> None:
    async with (
        engines(*IPS, STRANGER) as (first, second, stranger),
        gateway(tmp_path, pool([first, second], conformance=True)) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        headers = {
            name: value
            for name, value in steering(stranger).items()
            if name.lower() != "test-epp-endpoint-selection"
        }
        replies = await send_many(http, 20, headers)
        assert {reply.served_by for reply in replies} == {first.endpoint, second.endpoint}
        assert all(reply.headers[SERVED] == reply.served_by for reply in replies)
        reply = await send(http, chat(QUESTION), {"test-epp-endpoint-selection": STRANGER})
        assert reply.status == 503
        assert not stranger.requests
        assert untouched_by_clients(first)
        assert untouched_by_clients(second)
