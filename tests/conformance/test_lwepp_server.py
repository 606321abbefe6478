"""The order of answers when the body is streamed: the light picker's case, re-expressed.

kubernetes-sigs/gateway-api-inference-extension: pkg/lwepp/handlers/server_test.go
"""

import pytest

from tests.conformance.wire import (
    SELECTION,
    Wire,
    chunk,
    common,
    endpoints,
    kinds,
    pool_of,
    request_body,
    request_headers,
    request_trailers,
    set_headers,
)
from tests.serve.proxy import serving

BODY = b'{"prompt": "hello"}'


@pytest.mark.parametrize("cut", range(len(BODY) + 1))
async def test_the_pick_waits_for_the_body_and_comes_before_it(cut: int) -> None:
    async with serving(pool_of("10.0.0.1:8080", conformance=True)) as (_, channel):
        headers, *chunks = await Wire(channel).ask(
            request_headers({SELECTION: "10.0.0.1"}),
            request_body(BODY[:cut], end=False),
            request_body(BODY[cut:]),
        )
    assert kinds([headers, *chunks]) == ["request_headers", "request_body", "request_body"]
    assert endpoints(headers) == ["10.0.0.1:8080"]
    assert [chunk(answer) for answer in chunks] == [(BODY[:cut], False), (BODY[cut:], True)]
    for answer in chunks:
        assert not common(answer).HasField("header_mutation")
        assert not answer.HasField("dynamic_metadata")


async def test_a_body_that_ends_in_trailers_is_routed() -> None:
    async with serving(pool_of("10.0.0.1:8080")) as (_, channel):
        headers, body, trailers = await Wire(channel).ask(
            request_headers(), request_body(BODY, end=False), request_trailers()
        )
    assert endpoints(headers) == ["10.0.0.1:8080"]
    assert chunk(body) == (BODY, False)
    assert trailers.HasField("request_trailers")


async def test_no_header_of_the_suites_echo_server_is_set() -> None:
    async with serving(pool_of("10.0.0.1:8080", conformance=True)) as (_, channel):
        (answer,) = await Wire(channel).ask(request_headers(end=True))
    assert list(set_headers(answer)) == ["x-gateway-destination-endpoint"]
