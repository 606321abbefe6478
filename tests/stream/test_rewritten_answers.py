"""An answer that is rewritten on its way, in every mode and at every chunking."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.prompt import answer_renamer
from extproc.stream import BodyMode, BodyRewriter, Pick, Send, Stream, StreamSettings
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.stream import proxy

CHUNK = {"id": "real", "model": "real-name", "choices": [{"delta": {"content": '"model":"real"'}}]}
ANSWERS = {
    "application/json": json.dumps(CHUNK).encode(),
    "text/event-stream": b"data: %s\n\n" % json.dumps(CHUNK).encode() * 3 + b"data: [DONE]\n\n",
}


def rename(headers: Mapping[str, str]) -> BodyRewriter | None:
    return answer_renamer(headers["content-type"], "alias")


@dataclass
class Client:
    """What comes out of the proxy."""

    content_length: int | None
    body: bytes


def through(request: BodyMode, response: BodyMode, kind: str, chunks: list[bytes]) -> Client:
    """An answer through a proxy that follows overrides, which has the chunks as they are cut."""
    stream = Stream(StreamSettings(allow_mode_override=True))
    first = proxy.headers("request", {":method": "POST"}, end=True)
    tell(stream, proxy.announce(first, request, response))
    stream.picked(Pick((Endpoint("10.0.0.1:8000"),), rewrite_answer=rename))
    size = sum(map(len, chunks))
    headers = {":status": "200", "content-type": kind, "content-length": str(size)}
    answer = tell(stream, proxy.headers("response", headers))
    if answer.HasField("mode_override"):
        response = BodyMode(answer.mode_override.response_body_mode)
    removed = list(answer.response_headers.response.header_mutation.remove_headers)
    assert removed in ([], ["content-length"])
    client = Client(None if removed else size, b"")
    if response is BodyMode.BUFFERED:
        chunks = [b"".join(chunks)]
    if response is BodyMode.NONE:
        client.body = b"".join(chunks)
        return client
    for place, data in enumerate(chunks):
        last = place == len(chunks) - 1
        answer = tell(stream, proxy.body("response", data, end=last))
        read = proxy.Answer.read(answer.SerializeToString())
        if response in proxy.DUPLEX:
            assert read.chunk is not None
            assert read.end == last
            client.body += read.chunk
        else:
            client.body += data if read.replaced is None else read.replaced
        for option in answer.response_body.response.header_mutation.set_headers:
            assert option.header.key == "content-length"
            client.content_length = int(option.header.raw_value)
        assert stream.settled == last
    return client


def tell(stream: Stream, message: ProcessingRequest) -> ProcessingResponse:
    sent = [one for one in stream.receive(message) if isinstance(one, Send)]
    return ProcessingResponse.FromString(sent[0].message) if sent else ProcessingResponse()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """The body cut at these places, modulo its length."""
    edges = [0, *sorted(place % len(body) for place in places), len(body)]
    return [body[one:two] for one, two in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL, *proxy.DUPLEX]),
    st.sampled_from([one for one in BodyMode if one is not BodyMode.BUFFERED_PARTIAL]),
    st.sampled_from(sorted(ANSWERS)),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_the_client_gets_the_alias_and_every_other_byte(
    request: BodyMode, response: BodyMode, kind: str, places: list[int]
) -> None:
    body = ANSWERS[kind]
    client = through(request, response, kind, cut(body, places))
    hidden = response is BodyMode.NONE and request in proxy.DUPLEX
    assert client.body == (body if hidden else body.replace(b"real-name", b"alias"))
    assert client.content_length in (None, len(client.body))
    assert (client.content_length is not None) == (
        hidden or (response is BodyMode.BUFFERED and request in proxy.DUPLEX)
    )


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("response", [BodyMode.STREAMED, BodyMode.FULL_DUPLEX_STREAMED])
def test_the_name_may_be_cut_at_every_byte(response: BodyMode, kind: str) -> None:
    body = ANSWERS[kind]
    for at in range(1, len(body)):
        client = through(BodyMode.BUFFERED, response, kind, [body[:at], body[at:]])
        assert client.body == body.replace(b"real-name", b"alias")


def test_a_stream_is_not_left_within_a_name() -> None:
    stream = Stream(StreamSettings())
    first = proxy.headers("request", {":method": "POST"}, end=True)
    stream.receive(proxy.announce(first, BodyMode.BUFFERED, BodyMode.STREAMED))
    stream.picked(Pick((Endpoint("10.0.0.1:8000"),), rewrite_answer=rename))
    stream.receive(
        proxy.headers("response", {":status": "200", "content-type": "text/event-stream"})
    )
    leave = []
    for data in (b'data: {"model":', b'"re', b"al", b'",', b'"x":1}\n\n'):
        stream.receive(proxy.body("response", data))
        leave.append(stream.can_leave)
    assert leave == [True, False, False, True, True]
    assert not stream.settled


@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED])
def test_a_rewritten_request_is_not_kept_until_its_answer_ends(mode: BodyMode) -> None:
    stream = Stream(StreamSettings())
    first = proxy.headers("request", {":method": "POST"})
    stream.receive(proxy.announce(first, mode, BodyMode.NONE))
    stream.receive(proxy.body("request", b"x" * 1000, end=True))
    body = bytes(100_000)
    references = sys.getrefcount(body)
    stream.picked(Pick((Endpoint("10.0.0.1:8000"),), body=body, rewrite_answer=rename))
    assert sys.getrefcount(body) == references
