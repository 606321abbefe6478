"""The suite's traffic cases, through a real Envoy with Homing as the picker, re-expressed.

kubernetes-sigs/gateway-api-inference-extension: conformance/tests/
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from extproc.config import Config, Instance, Model, Pool
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.terms import Endpoint
from tests.conformance.gateway import (
    MODES,
    QUESTION,
    WIRINGS,
    Engine,
    Gateway,
    Wiring,
    engines,
    gateway,
    pool,
    send,
    send_many,
)
from tests.conformance.wire import SELECTION, SERVED, pool_of
from tests.serve.proxy import CHAT, chat

IPS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")


def ip_of(engine: Engine) -> str:
    return engine.endpoint.partition(":")[0]


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[tuple[Gateway, list[Engine]]]:
    """A conformance run with three engines, each on an ip of its own."""
    async with (
        engines(*IPS) as listed,
        gateway(tmp_path, pool(listed, conformance=True)) as running,
    ):
        yield running, listed


@pytest.mark.parametrize("wanted", [[2], [0, 1], [0, 1, 2]], ids=["one", "two", "all"])
async def test_traffic_reaches_only_the_endpoints_that_the_picker_returns(
    wanted: list[int], three: tuple[Gateway, list[Engine]]
) -> None:
    running, listed = three
    named = [listed[number] for number in wanted]
    headers = {SELECTION: ",".join(ip_of(engine) for engine in named)}
    async with aiohttp.ClientSession(running.envoy.url) as http:
        replies = await send_many(http, 100, headers)
    assert {reply.status for reply in replies} == {200}
    assert {reply.served_by for reply in replies} == {engine.endpoint for engine in named}


async def test_the_endpoint_that_served_is_reported_to_the_client(
    three: tuple[Gateway, list[Engine]],
) -> None:
    running, listed = three
    async with aiohttp.ClientSession(running.envoy.url) as http:
        for engine in listed:
            for body in (chat(QUESTION), None):
                reply = await send(http, body, {SELECTION: ip_of(engine)})
                assert reply.headers[SERVED] == reply.served_by == engine.endpoint


async def test_a_selection_that_no_endpoint_meets_is_a_503(
    three: tuple[Gateway, list[Engine]],
) -> None:
    running, listed = three
    async with aiohttp.ClientSession(running.envoy.url) as http:
        for body in (chat(QUESTION), None):
            reply = await send(http, body, {SELECTION: "127.0.0.99"})
            assert reply.status == 503
            assert reply.headers["x-homing-reason"] == "no_endpoint"
    assert not any(engine.requests for engine in listed)


async def test_a_request_without_a_body_or_a_selection_is_served(
    three: tuple[Gateway, list[Engine]],
) -> None:
    running, listed = three
    async with aiohttp.ClientSession(running.envoy.url) as http:
        replies = [await send(http) for _ in listed]
    assert {reply.served_by for reply in replies} == {engine.endpoint for engine in listed}


def _ports(listed: Sequence[Engine], ip: str) -> list[str]:
    return [engine.endpoint for engine in listed if ip_of(engine) == ip]


async def test_ranks_behind_one_ip_are_chosen_by_port_or_all_together(tmp_path: Path) -> None:
    async with (
        engines(*IPS, *IPS, *IPS) as listed,
        gateway(tmp_path, pool(listed, conformance=True)) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        first, second, third = (_ports(listed, ip) for ip in IPS)
        for named, allowed in (
            ([IPS[1]], second),
            ([IPS[0], third[1]], [*first, third[1]]),
            ([IPS[0], second[0], second[2], IPS[2]], [*first, second[0], second[2], *third]),
        ):
            replies = await send_many(http, 100, {SELECTION: ",".join(named)})
            assert {reply.status for reply in replies} == {200}
            assert {reply.served_by for reply in replies} == set(allowed)
            assert all(reply.headers[SERVED] == reply.served_by for reply in replies)


@pytest.mark.parametrize("mode", MODES)
async def test_requests_are_served_after_the_picker_is_gone(mode: str, tmp_path: Path) -> None:
    async with (
        engines(*IPS) as listed,
        gateway(tmp_path, pool(listed, conformance=True), mode=mode) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        headers = {SELECTION: ip_of(listed[0])}
        reply = await send(http, chat(QUESTION), headers)
        assert reply.served_by == listed[0].endpoint
        await running.stop_homing()
        replies = await send_many(http, 20, headers)
        assert {reply.status for reply in replies} == {200}
        assert len({reply.served_by for reply in replies}) > 1, "the header has chosen"


def two_pools(listed: Sequence[Engine], *, conformance: bool) -> Config:
    """A model a pool: `first` on the first half of the engines, `second` on the others."""
    half = len(listed) // 2
    pools = tuple(
        Pool(
            name=name,
            models=(Model(name=name, tokenizer=DEMO_TOKENIZER),),
            instances=tuple(Instance(endpoint=Endpoint(one.endpoint)) for one in members),
            metrics="off",
        )
        for name, members in (("first", listed[:half]), ("second", listed[half:]))
    )
    return pool_of("10.0.0.1:1").model_copy(update={"pools": pools, "conformance": conformance})


@pytest.mark.parametrize("conformance", [True, False])
async def test_a_request_stays_in_its_pool_whoever_else_is_named(
    conformance: bool, tmp_path: Path
) -> None:
    async with (
        engines("127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14") as listed,
        gateway(tmp_path, two_pools(listed, conformance=conformance)) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        headers = {SELECTION: ",".join(ip_of(engine) for engine in listed)}
        for model, members in (("first", listed[:2]), ("second", listed[2:])):
            served = set()
            for number in range(10):
                body = chat(QUESTION, model=model, cache_salt=f"salt-{number}")
                async with http.post(CHAT, data=body, headers=headers) as answer:
                    assert answer.status == 200
                    served.add((await answer.json())["served_by"])
            assert served == {engine.endpoint for engine in members}


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_both_ways_of_wiring_follow_the_picker(wiring: Wiring, tmp_path: Path) -> None:
    async with (
        engines(*IPS) as listed,
        gateway(tmp_path, pool(listed, conformance=True, fallbacks=1), wiring=wiring) as running,
        aiohttp.ClientSession(running.envoy.url) as http,
    ):
        for engine in listed:
            for body in (chat(QUESTION), None):
                reply = await send(http, body, {SELECTION: ip_of(engine)})
                assert reply.headers[SERVED] == reply.served_by == engine.endpoint
