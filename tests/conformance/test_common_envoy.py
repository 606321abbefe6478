"""Headers, metadata and chunks on the wire: the cases of the shared Envoy helpers, re-expressed.

llm-d/llm-d-router and kubernetes-sigs/gateway-api-inference-extension: pkg/common/envoy/
{chunking,headers,metadata}_test.go
"""

from itertools import pairwise

import pytest

from extproc.stream import Ask, BodyMode, Pick, Refusal, Send, Stream, StreamSettings
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from proto_gen.processing_mode_pb2 import ProcessingMode
from tests.conformance.wire import (
    SELECTION,
    Wire,
    chunk,
    endpoints,
    pool_of,
    request_body,
    request_headers,
    set_headers,
)
from tests.serve.proxy import serving

POOL = ("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000")
LIMIT = 62_000
"""Bytes of a chunk that every proxy takes."""


def replaced(size: int) -> list[tuple[bytes, bool]]:
    """The chunks of a body of so many bytes that takes the place of another."""
    stream = Stream(StreamSettings())
    headers = request_headers()
    headers.protocol_config.request_body_mode = ProcessingMode.FULL_DUPLEX_STREAMED
    commands = [*stream.receive(headers), *stream.receive(request_body(b"{}"))]
    assert isinstance(commands[-1], Ask)
    body = bytes(n % 251 for n in range(size))
    sent = stream.picked(Pick((Endpoint(POOL[0]),), body=body))
    answers = [ProcessingResponse.FromString(c.message) for c in sent if isinstance(c, Send)]
    chunks = [chunk(answer) for answer in answers if answer.HasField("request_body")]
    assert b"".join(data for data, _ in chunks) == body
    return chunks


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (0, 1),
        (LIMIT - 1000, 1),
        (LIMIT, 1),
        (LIMIT + 1, 2),
        (LIMIT + 1000, 2),
        (2 * LIMIT + 1000, 3),
    ],
)
def test_a_body_of_ours_is_cut_where_every_proxy_takes_it(size: int, count: int) -> None:
    chunks = replaced(size)
    assert len(chunks) == count
    assert [end for _, end in chunks] == [False] * (count - 1) + [True]


@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, 300_000])
async def test_a_body_that_is_not_rewritten_keeps_the_proxys_chunks(size: int) -> None:
    body = bytes(n % 251 for n in range(size))
    cuts = [0, size // 3, size // 2, size]
    pieces = [body[start:end] for start, end in pairwise(cuts)]
    messages = [request_body(piece, end=False) for piece in pieces[:-1]]
    async with serving(pool_of(*POOL)) as (_, channel):
        _, *answers = await Wire(channel).ask(
            request_headers(path="/v1/files"), *messages, request_body(pieces[-1])
        )
    assert [chunk(answer) for answer in answers] == [
        *((piece, False) for piece in pieces[:-1]),
        (pieces[-1], True),
    ]


def header(key: str, value: str = "", raw: bytes = b"") -> ProcessingRequest:
    message = request_headers(end=True)
    added = message.request_headers.headers.headers.add()
    added.key, added.value, added.raw_value = key, value, raw
    return message


@pytest.mark.parametrize(
    "message",
    [
        header(SELECTION, raw=b"10.0.0.2"),
        header("Test-EPP-Endpoint-Selection", raw=b"10.0.0.2"),
        header(SELECTION, value="10.0.0.2"),
        header(SELECTION, value="10.0.0.3", raw=b"10.0.0.2"),
    ],
    ids=["as it is", "in capitals", "as a string", "both: raw bytes first"],
)
async def test_a_header_is_found_in_every_form(message: ProcessingRequest) -> None:
    async with serving(pool_of(*POOL, conformance=True)) as (_, channel):
        (answer,) = await Wire(channel).ask(message)
    assert endpoints(answer) == ["10.0.0.2:8000"]


@pytest.mark.parametrize(
    "message",
    [header("another-header", raw=b"10.0.0.2"), header(SELECTION)],
    ids=["absent", "without a value"],
)
async def test_a_header_that_is_absent_or_empty_says_nothing(message: ProcessingRequest) -> None:
    async with serving(pool_of(*POOL, conformance=True)) as (_, channel):
        (answer,) = await Wire(channel).ask(message)
    assert set(endpoints(answer)) == set(POOL)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"x-api-key": "secret-123"},
        {"x-api-key": "key", "x-request-id": "id", "authorization": "Bearer token"},
        {"x-empty": ""},
    ],
    ids=["none", "one", "several", "an empty one"],
)
def test_headers_that_a_pick_adds_are_set_as_raw_bytes(more: dict[str, str]) -> None:
    stream = Stream(StreamSettings())
    stream.receive(request_headers(end=True))
    (command,) = stream.picked(Pick((Endpoint(POOL[0]),), headers=more))
    assert isinstance(command, Send)
    answer = ProcessingResponse.FromString(command.message)
    assert set_headers(answer) == {"x-gateway-destination-endpoint": POOL[0], **more}
    for option in answer.request_headers.response.header_mutation.set_headers:
        assert not option.header.value


def test_a_refusals_reason_is_a_header_only_where_there_is_one() -> None:
    for reason, expected in (("evicted", {"x-homing-reason": "evicted"}), ("", {})):
        stream = Stream(StreamSettings())
        stream.receive(request_headers(end=True))
        (command,) = stream.refused(Refusal(429, "shed", "too much is waiting", reason=reason))
        assert isinstance(command, Send)
        answer = ProcessingResponse.FromString(command.message)
        assert answer.immediate_response.status.code == 429
        headers = set_headers(answer)
        assert headers.pop("content-type") == "application/json"
        assert headers == expected


async def test_empty_metadata_restricts_nothing() -> None:
    absent, empty, other = (request_headers(end=True) for _ in range(3))
    empty.metadata_context.SetInParent()
    other.metadata_context.filter_metadata["key-1"].update({"hello": ["world", 1, None]})
    async with serving(pool_of(*POOL)) as (_, channel):
        for message in (absent, empty, other):
            (answer,) = await Wire(channel, BodyMode.BUFFERED).ask(message)
            assert set(endpoints(answer)) == set(POOL)
