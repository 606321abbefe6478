"""gRPC requests to an engine: the full picker's cases, re-expressed. Their bodies are not read.

llm-d/llm-d-router: test/integration/epp/grpc_test.go
"""

import pytest

from tests.conformance.wire import (
    Wire,
    chunk,
    endpoints,
    kinds,
    pool_of,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    with_hint,
)
from tests.serve.proxy import serving

POOL = ("192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000")
METHODS = ("/vllm.grpc.engine.VllmEngine/Generate", "/vllm.grpc.engine.VllmEngine/Embed")
GRPC = {"content-type": "application/grpc", "te": "trailers"}
MESSAGE = b"\x00\x00\x00\x00\x07\x12\x05test1"
"""A gRPC frame: no compression, seven bytes of protobuf."""


@pytest.mark.parametrize("method", METHODS)
async def test_a_grpc_request_is_picked_for_and_its_message_passed_on(method: str) -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        for cut in range(len(MESSAGE) + 1):
            headers, *chunks = await Wire(channel).ask(
                request_headers(GRPC, path=method),
                request_body(MESSAGE[:cut], end=False),
                request_body(MESSAGE[cut:]),
            )
            assert set(endpoints(headers)) == set(POOL)
            assert [chunk(answer) for answer in chunks] == [
                (MESSAGE[:cut], False),
                (MESSAGE[cut:], True),
            ]


async def test_grpc_requests_go_to_the_least_loaded() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wires = [Wire(channel) for _ in POOL]
        first = []
        for wire in wires:
            await wire.say(request_headers(GRPC, path=METHODS[0]), request_body(MESSAGE))
            first.append(endpoints((await wire.hear(2))[0])[0])
        assert sorted(first) == sorted(POOL)
        for wire in wires:
            await wire.end()


async def test_a_grpc_request_to_an_empty_pool_is_a_503() -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        app.pools[0].members.set_instances(())
        (refusal,) = await Wire(channel).ask(request_headers(GRPC, path=METHODS[0], end=True))
    assert refusal.immediate_response.status.code == 503


@pytest.mark.parametrize(
    ("hint", "allowed"),
    [(list(POOL), set(POOL)), ([POOL[2]], {POOL[2]}), (["192.168.1.99:8000"], set())],
)
async def test_the_subset_hint_counts_for_grpc_requests_too(
    hint: list[str], allowed: set[str]
) -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wire = Wire(channel)
        headers = with_hint(request_headers(GRPC, path=METHODS[0]), hint)
        await wire.say(headers, request_body(MESSAGE))
        answer, *_ = await wire.hear(2 if allowed else 1)
        await wire.end()
    if allowed:
        assert set(endpoints(answer)) == allowed
    else:
        assert answer.immediate_response.status.code == 503


@pytest.mark.parametrize(
    "chunks",
    [[MESSAGE[:4], MESSAGE[4:]], [b"no healthy upstream"], [MESSAGE, MESSAGE]],
    ids=["a message in two chunks", "not gRPC", "two messages"],
)
async def test_a_grpc_answer_and_its_trailers_are_passed_on(chunks: list[bytes]) -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        answers = await Wire(channel).ask(
            request_headers(GRPC, path=METHODS[0]),
            request_body(MESSAGE),
            response_headers({":status": "200", **GRPC}),
            *(response_body(data) for data in chunks),
            response_trailers(),
        )
    assert kinds(answers[2:]) == [
        "response_headers",
        *["response_body"] * len(chunks),
        "response_trailers",
    ]
    assert [chunk(answer) for answer in answers[3:-1]] == [(data, False) for data in chunks]
