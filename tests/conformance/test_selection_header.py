"""How the selection header is read: the full picker's cases, re-expressed.

llm-d/llm-d-router: pkg/epp/framework/plugins/scheduling/test/filter/filter_test.go
"""

import pytest

from tests.conformance.wire import SELECTION, endpoints, pick, pool_of, request_headers
from tests.serve.proxy import serving

POOL = (
    "10.0.0.1:3000",
    "10.0.0.1:3002",
    "10.0.0.2:3000",
    "10.0.0.3:3004",
    "[fd00::1]:3002",
    "[fd00::2]:3000",
)


async def picked(value: str) -> list[str] | None:
    """Who may serve a request with this header; None for a 503."""
    async with serving(pool_of(*POOL, conformance=True)) as (_, channel):
        answer = await pick(channel, request_headers({SELECTION: value}))
    if answer.HasField("immediate_response"):
        assert answer.immediate_response.status.code == 503
        return None
    return endpoints(answer)


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
async def test_a_header_that_names_nobody_restricts_nothing(value: str) -> None:
    listed = await picked(value)
    assert listed is not None
    assert len(listed) == 3, "as many as there are fallbacks, and no fewer"


@pytest.mark.parametrize("value", ["10.0.0.99", "10.0.0.1:9999", "engine-1", "10.0.0", "10.0.0.1:"])
async def test_a_header_that_names_only_strangers_is_a_503(value: str) -> None:
    assert await picked(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.1", {"10.0.0.1:3000", "10.0.0.1:3002"}),
        ("10.0.0.1:3002", {"10.0.0.1:3002"}),
        ("10.0.0.3:3004, 10.0.0.2, 10.0.0.3", {"10.0.0.3:3004", "10.0.0.2:3000"}),
        ("[fd00::1]:3002", {"[fd00::1]:3002"}),
        ("fd00::2", {"[fd00::2]:3000"}),
        ("[fd00::2]", {"[fd00::2]:3000"}),
        ("10.0.0.99,10.0.0.2,10.0.0.1:9999", {"10.0.0.2:3000"}),
    ],
    ids=[
        "an ip: all its ports",
        "an ip with a port",
        "several, some twice",
        "IPv6 with a port",
        "IPv6",
        "IPv6 in brackets",
        "strangers are skipped",
    ],
)
async def test_endpoints_are_named_by_ip_or_by_ip_and_port(value: str, expected: set[str]) -> None:
    listed = await picked(value)
    assert listed is not None
    assert sorted(listed) == sorted(expected), "each once"


async def test_a_header_that_is_repeated_names_all_that_its_values_name() -> None:
    headers = request_headers([(SELECTION, "10.0.0.2"), (SELECTION, "10.0.0.3")])
    async with serving(pool_of(*POOL, conformance=True)) as (_, channel):
        listed = endpoints(await pick(channel, headers))
    assert sorted(listed) == ["10.0.0.2:3000", "10.0.0.3:3004"]


async def test_the_header_does_not_reach_the_engine() -> None:
    async with serving(pool_of(*POOL, conformance=True)) as (_, channel):
        answer = await pick(channel, request_headers({SELECTION: "10.0.0.2"}))
    removed = answer.request_headers.response.header_mutation.remove_headers
    assert list(removed) == [SELECTION]


async def test_outside_of_conformance_runs_the_header_chooses_nobody_and_is_removed() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        first = set()
        for _ in POOL:
            answer = await pick(channel, request_headers({SELECTION: "10.0.0.2"}))
            first.add(endpoints(answer)[0])
            removed = answer.request_headers.response.header_mutation.remove_headers
            assert list(removed) == [SELECTION]
    assert first == set(POOL)
