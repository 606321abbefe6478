"""Which endpoints are candidates: the light picker's cases, re-expressed.

kubernetes-sigs/gateway-api-inference-extension: pkg/lwepp/handlers/request_test.go
"""

from collections.abc import Sequence

import pytest
from google.protobuf.json_format import MessageToDict

from tests.conformance.wire import (
    SELECTION,
    SUBSET_NAMESPACE,
    endpoints,
    pick,
    pool_of,
    request_headers,
    set_headers,
    with_hint,
    with_metadata,
)
from tests.serve.proxy import LONG, chat, serving

ONE, TWO, THREE = "10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"


async def test_requests_that_have_nothing_in_common_go_round_the_instances() -> None:
    async with serving(pool_of(ONE, TWO)) as (_, channel):
        first, second, third = [
            endpoints(await pick(channel, request_headers(path="/v1/models", method="GET")))[0]
            for _ in range(3)
        ]
    assert first != second
    assert third == first


@pytest.mark.parametrize("body", [None, chat(LONG)], ids=["without a body", "with a body"])
async def test_the_selection_header_overrides_the_choice(body: bytes | None) -> None:
    async with serving(pool_of(ONE, TWO, THREE, conformance=True)) as (_, channel):
        for wanted in (TWO, THREE, ONE):
            headers = request_headers({SELECTION: wanted.partition(":")[0]})
            assert endpoints(await pick(channel, headers, body)) == [wanted]


async def test_a_pool_without_instances_is_a_503() -> None:
    async with serving(pool_of(ONE)) as (app, channel):
        app.pools[0].members.set_instances(())
        for body in (None, chat(LONG)):
            refusal = await pick(channel, request_headers(), body)
            assert refusal.immediate_response.status.code == 503


HINTS: list[tuple[str | Sequence[str], set[str]]] = [
    ([THREE], {THREE}),
    (f"{TWO},{THREE}", {TWO, THREE}),
    (f"  {TWO} ,  ,  {THREE}  ", {TWO, THREE}),
    ([f"{TWO}, {THREE}"], {TWO, THREE}),
    ([], set()),
    ("", set()),
    ("192.168.1.1:8080", set()),
]


@pytest.mark.parametrize(
    ("hint", "allowed"),
    HINTS,
    ids=[
        "a list",
        "a string with commas",
        "blanks around commas",
        "commas inside a list",
        "an empty list",
        "an empty string",
        "nobody of the pool",
    ],
)
async def test_a_subset_hint_restricts_the_pick_in_every_form(
    hint: str | Sequence[str], allowed: set[str]
) -> None:
    async with serving(pool_of(ONE, TWO, THREE)) as (_, channel):
        for body in (None, chat(LONG)):
            answer = await pick(channel, with_hint(request_headers(), hint), body)
            if allowed:
                assert set(endpoints(answer)) == allowed
            else:
                assert answer.immediate_response.status.code == 503


async def test_the_selection_header_chooses_among_what_the_hint_allows() -> None:
    async with serving(pool_of(TWO, THREE, conformance=True)) as (_, channel):
        headers = with_hint(request_headers({SELECTION: "10.0.0.2"}), [TWO, THREE])
        assert endpoints(await pick(channel, headers)) == [TWO]


async def test_the_selection_header_cannot_go_beyond_the_hint() -> None:
    async with serving(pool_of(ONE, TWO, conformance=True)) as (_, channel):
        headers = with_hint(request_headers({SELECTION: "10.0.0.1"}), [TWO])
        refusal = await pick(channel, headers)
    assert refusal.immediate_response.status.code == 503


async def test_headers_that_are_repeated_stay_as_they_were() -> None:
    repeated = [
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-for", "192.0.2.2"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ]
    async with serving(pool_of(ONE)) as (_, channel):
        answer = await pick(channel, request_headers(repeated))
    mutation = answer.request_headers.response.header_mutation
    assert not {"x-forwarded-for", "cookie"} & {*set_headers(answer), *mutation.remove_headers}


async def test_without_a_hint_the_whole_pool_is_eligible() -> None:
    async with serving(pool_of(ONE, TWO)) as (_, channel):
        assert set(endpoints(await pick(channel, request_headers()))) == {ONE, TWO}


async def test_other_metadata_in_the_hints_namespace_is_no_hint() -> None:
    headers = with_metadata(request_headers(), SUBSET_NAMESPACE, another_key="10.0.0.1:8080")
    async with serving(pool_of(ONE, TWO)) as (_, channel):
        assert set(endpoints(await pick(channel, headers))) == {ONE, TWO}


@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        ("10.0.0.1:8080", {"10.0.0.1:8080"}),
        ("10.0.0.1", {"10.0.0.1:8080", "10.0.0.1:9090"}),
        ("10.0.0.1:8080,10.0.0.2", {"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.2:9090"}),
        ("10.0.0.1:3000", set()),
    ],
)
@pytest.mark.parametrize("by", ["hint", "selection header"])
async def test_an_entry_with_a_port_means_that_port_and_one_without_means_all(
    by: str, entries: str, allowed: set[str]
) -> None:
    ports = (f"10.0.0.{host}:{port}" for host in (1, 2) for port in (8080, 9090))
    headers = (
        with_hint(request_headers(), entries)
        if by == "hint"
        else request_headers({SELECTION: entries})
    )
    async with serving(pool_of(*ports, conformance=True)) as (_, channel):
        answer = await pick(channel, headers)
    if allowed:
        assert set(endpoints(answer)) == allowed
    else:
        assert answer.immediate_response.status.code == 503, MessageToDict(answer)
