"""Requests and answers one by one: the cases of the full picker's handlers, re-expressed.

llm-d/llm-d-router: pkg/epp/handlers/ {parsers,request,response,server_abort}_test.go,
pkg/epp/server/server_test.go
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from extproc.stream import BodyMode, Pick, Send, Stream, StreamSettings
from extproc.stream.headers import CONTROL_HEADERS
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import ProcessingResponse
from tests.conformance.wire import (
    Wire,
    chunk,
    common,
    endpoints,
    kinds,
    pool_of,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
)
from tests.serve.proxy import DESTINATION, LONG, chat, sample, serving

POOL = ("1.2.3.4:8080", "5.6.7.8:8080")

# --- paths ---


async def reason(path: str, body: bytes) -> str | None:
    """Why a request is routed by load; None where its prompt was understood."""
    async with serving(pool_of(*POOL)) as (app, channel):
        headers, passed = await Wire(channel).ask(request_headers(path=path), request_body(body))
        assert set(endpoints(headers)) == set(POOL)
        assert chunk(passed) == (body, True)
        for family in app.metrics.registry.collect():
            for one in family.samples:
                if one.name == "homing_picks_total" and one.value:
                    return one.labels["reason"] or None
    raise AssertionError("no pick was counted")


PROMPTS: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
    "/v1/completions": {"prompt": LONG},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 9},
    "/v1/responses": {"input": LONG},
    "/inference/v1/generate": {"token_ids": [1, 2, 3] * 20},
}


@pytest.mark.parametrize("path", PROMPTS)
async def test_the_path_says_how_a_body_is_read(path: str) -> None:
    body = json.dumps({"model": "demo-model", **PROMPTS[path]}).encode()
    assert await reason(path, body) is None
    assert await reason(f"{path}?api-version=1", body) is None


@pytest.mark.parametrize(
    "path",
    [
        "/unknown/path",
        "/v1/chat/completions/",
        "/prefix/v1/chat/completions",
        "/generate",
        "/google.cloud.aiplatform.v1.PredictionService/ChatCompletions",
    ],
)
async def test_a_request_to_another_path_is_routed_by_load_as_it_came(path: str) -> None:
    assert await reason(path, chat(LONG)) == "other_path"


# --- requests ---


async def test_control_headers_of_clients_are_removed_and_all_others_stay() -> None:
    stranger = dict.fromkeys(CONTROL_HEADERS, "1.1.1.1:666")
    others = {
        "x-user-data": "important",
        "content-length": "99999",
        "x-gateway-inference-objective": "batch",
        "x-gateway-inference-fairness-id": "tenant",
    }
    async with serving(pool_of(*POOL)) as (_, channel):
        (answer,) = await Wire(channel).ask(request_headers({**stranger, **others}, end=True))
    mutation = answer.request_headers.response.header_mutation
    assert set(endpoints(answer)) == set(POOL)
    assert set(set_headers(answer)) == {DESTINATION}
    assert CONTROL_HEADERS - {DESTINATION} <= set(mutation.remove_headers) <= CONTROL_HEADERS


async def test_an_objective_of_the_request_changes_nothing() -> None:
    first = set()
    async with serving(pool_of(*POOL)) as (_, channel):
        for _ in POOL:
            get = request_headers({"x-gateway-inference-objective": "critical"}, end=True)
            first.add(endpoints((await Wire(channel).ask(get))[0])[0])
    assert first == set(POOL)


def test_metadata_of_a_pick_stands_beside_its_endpoints() -> None:
    stream = Stream(StreamSettings())
    stream.receive(request_headers(end=True))
    pick = Pick(tuple(map(Endpoint, POOL)), metadata={"existing-key": "existing value"})
    (command,) = stream.picked(pick)
    assert isinstance(command, Send)
    answer = ProcessingResponse.FromString(command.message)
    assert MessageToDict(answer.dynamic_metadata) == {
        "envoy.lb": {DESTINATION: ",".join(POOL), "existing-key": "existing value"}
    }


async def test_a_body_that_is_not_understood_is_sent_back_with_an_endpoint() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        headers, body = await Wire(channel).ask(
            request_headers(path="/v1/files"), request_body(b"test body")
        )
        assert set(endpoints(headers)) == set(POOL)
        assert chunk(body) == (b"test body", True)
        (alone,) = await Wire(channel).ask(request_headers(path="/v1/files", end=True))
        assert set(endpoints(alone)) == set(POOL)


async def test_a_body_above_grpcs_default_limit_is_picked_for() -> None:
    body = chat("x" * 5 * 1024 * 1024, model="unlisted")
    async with serving(pool_of(*POOL)) as (_, channel):
        _, answer = await Wire(channel, BodyMode.BUFFERED, BodyMode.NONE).ask(
            request_headers(), request_body(body)
        )
    assert set(endpoints(answer)) == set(POOL)


# --- answers ---

USAGE = b'data: {"usage":{"prompt_tokens":5,"completion_tokens":10,"total_tokens":15}}\n'
ANTHROPIC = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":1000}}}\n\n',
    b'event: message_delta\ndata: {"usage":{"output_tokens":200}}\n\n',
)
MODEL_NAMED = b'{"id":"cmpl-123","model": "demo-model","choices":[]}'


@pytest.mark.parametrize("trailers", [False, True], ids=["no trailers", "trailers"])
@pytest.mark.parametrize("stream_asked", [False, True], ids=["", "stream asked for"])
@pytest.mark.parametrize(
    ("kind", "chunks"),
    [
        ("application/json", [b'{"usage":{"prompt_tokens":11}}']),
        ("application/json", [MODEL_NAMED]),
        ("application/json", [b'{"usage":', b'{"prompt_tokens":11}}', b""]),
        ("application/json", [b'{"invalid json"']),
        ("text/event-stream; charset=utf-8", [USAGE + b"data: [DONE]"]),
        ("text/event-stream", [USAGE, b"data: [DONE]"]),
        ("text/event-stream", [USAGE[:20], USAGE[20:], b"data: [DONE]"]),
        ("text/event-stream", [b"data: {}\n"]),
        ("text/event-stream", list(ANTHROPIC)),
        ("text/event-stream", [b"data: " + MODEL_NAMED + b"\n\n"]),
    ],
)
async def test_an_answer_reaches_the_client_byte_for_byte_as_it_came(
    kind: str, chunks: list[bytes], stream_asked: bool, trailers: bool
) -> None:
    bodies = [
        response_body(data, end=place == len(chunks) - 1 and not trailers)
        for place, data in enumerate(chunks)
    ]
    headers = {":status": "200", "content-type": kind, "content-length": "500"}
    async with serving(pool_of(*POOL)) as (app, channel):
        _, _, first, *rest = await Wire(channel).ask(
            request_headers(),
            request_body(chat(LONG, stream=stream_asked)),
            response_headers(headers),
            *bodies,
            *([response_trailers()] if trailers else []),
        )
        assert app.processor.open_streams == 0
    assert not common(first).HasField("header_mutation")
    last = ["response_trailers"] if trailers else []
    assert kinds(rest) == ["response_body"] * len(chunks) + last
    passed = [chunk(answer) for answer in rest[: len(chunks)]]
    assert [data for data, _ in passed] == chunks
    assert [end for _, end in passed] == [*[False] * (len(chunks) - 1), not trailers]
    assert not any(answer.HasField("dynamic_metadata") for answer in rest)


async def test_headers_of_an_answer_are_the_engines_whatever_their_names() -> None:
    headers = {
        ":status": "200",
        "x-backend-server": "vllm-v0.6.3",
        DESTINATION: "10.2.0.5:8080",
        "content-length": "500",
    }
    async with serving(pool_of(*POOL)) as (_, channel):
        _, answer = await Wire(channel).ask(request_headers(end=True), response_headers(headers))
    assert not common(answer).HasField("header_mutation")


async def test_the_status_is_counted_under_either_name() -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        for name, status in ((":status", "200"), ("status", "500")):
            await Wire(channel).ask(request_headers(end=True), response_headers({name: status}))
        for status in ("2xx", "5xx"):
            assert sample(app, "homing_answers_total", pool="test", status=status) == 1


# --- ends ---


async def test_the_stream_goes_on_after_a_body_that_was_not_understood() -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        wire = Wire(channel)
        await wire.say(request_headers(path="/v1/files"), request_body(b"{}"))
        assert kinds(await wire.hear(2)) == ["request_headers", "request_body"]
        await wire.say(response_headers())
        assert kinds(await wire.hear(1)) == ["response_headers"]
        await wire.end()
        assert app.pools[0].load.in_flight == 0


async def test_every_part_of_a_request_and_its_answer_is_answered_in_order() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        answers = await Wire(channel).ask(
            request_headers(),
            request_body(chat(LONG), end=False),
            request_trailers(),
            response_headers(),
            response_body(b"{}"),
            response_trailers(),
        )
    assert kinds(answers) == [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
    ]
