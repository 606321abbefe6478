"""Who served, told to the suite: the light picker's cases for response headers, re-expressed.

kubernetes-sigs/gateway-api-inference-extension: pkg/lwepp/handlers/response_test.go
llm-d/llm-d-router: pkg/epp/framework/plugins/requestcontrol/test/responsereceived/
destination_endpoint_served_verifier_test.go
"""

from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.conformance.wire import (
    SERVED,
    Wire,
    pool_of,
    request_headers,
    response_headers,
    set_headers,
    with_metadata,
)
from tests.serve.proxy import serving

ENDPOINT = "10.0.0.2:3000"


async def answered(message: ProcessingRequest, *, conformance: bool = True) -> ProcessingResponse:
    """Homing's answer to these response headers."""
    async with serving(pool_of(ENDPOINT, conformance=conformance)) as (_, channel):
        _, answer = await Wire(channel).ask(request_headers(end=True), message)
        return answer


async def test_without_lb_metadata_nobody_is_named() -> None:
    assert SERVED not in set_headers(await answered(response_headers()))


async def test_other_lb_metadata_names_nobody() -> None:
    message = with_metadata(response_headers(), "envoy.lb", some_other_key="value")
    assert SERVED not in set_headers(await answered(message))


async def test_the_served_endpoint_of_the_metadata_is_named() -> None:
    message = with_metadata(
        response_headers(), "envoy.lb", x_gateway_destination_endpoint_served=ENDPOINT
    )
    assert set_headers(await answered(message)) == {SERVED: ENDPOINT}


async def test_the_served_endpoint_of_envoys_attribute_is_named() -> None:
    message = response_headers()
    message.attributes["envoy.filters.http.ext_proc"].update({"upstream.address": ENDPOINT})
    assert set_headers(await answered(message)) == {SERVED: ENDPOINT}


async def test_the_answers_own_headers_are_left_as_they_are() -> None:
    message = response_headers({":status": "200", "x-custom-header": "custom-value"})
    answer = await answered(message)
    assert set_headers(answer) == {}
    assert not answer.response_headers.response.header_mutation.remove_headers


async def test_nobody_is_named_outside_of_conformance_runs() -> None:
    message = with_metadata(
        response_headers(), "envoy.lb", x_gateway_destination_endpoint_served=ENDPOINT
    )
    assert set_headers(await answered(message, conformance=False)) == {}
