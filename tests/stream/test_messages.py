"""Reading and building single messages."""

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.stream import Pick, Refusal, Send, Stream, StreamSettings, parse_request
from extproc.stream.messages import (
    CONTINUE,
    Part,
    build_streamed,
    read_flags,
    read_headers,
    read_outcome,
    read_served,
    read_subset,
)
from extproc.terms import Endpoint
from proto_gen.base_pb2 import HeaderMap
from proto_gen.ext_proc_pb2 import HttpBody, ProcessingRequest, ProcessingResponse
from tests.stream import proxy

SUBSET = "x-gateway-destination-endpoint-subset"


@given(
    st.sampled_from([Part.REQUEST_BODY, Part.RESPONSE_BODY]),
    st.one_of(
        st.integers(0, 300),
        # Where a length, or one of the four around it, takes another byte.
        *(st.integers(edge - 40, edge + 40) for edge in (2**7, 2**14, 2**21)),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example(Part.REQUEST_BODY, 0, False, False, False)
def test_a_chunk_framed_by_hand_is_what_protobuf_writes(
    part: Part, size: int, end: bool, end_without: bool, compressed: bool
) -> None:
    chunk = HttpBody(
        body=bytes(size),
        end_of_stream=end,
        end_of_stream_without_message=end_without,
        grpc_message_compressed=compressed,
    )
    built = ProcessingResponse()
    name = "request_body" if part is Part.REQUEST_BODY else "response_body"
    streamed = getattr(built, name).response.body_mutation.streamed_response
    streamed.SetInParent()
    streamed.body = chunk.body
    streamed.end_of_stream = end
    streamed.end_of_stream_without_message = end_without
    streamed.grpc_message_compressed = compressed
    assert build_streamed(part, chunk.body, read_flags(chunk)) == built.SerializeToString()


@pytest.mark.parametrize("part", Part)
def test_the_answer_that_changes_nothing_has_its_part_set(part: Part) -> None:
    response = ProcessingResponse()
    getattr(response, part.name.lower()).SetInParent()
    assert CONTINUE[part] == response.SerializeToString()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_an_empty_message(data: bytes) -> None:
    assert isinstance(parse_request(data), ProcessingRequest)


def test_a_message_cut_short_is_an_empty_message() -> None:
    data = proxy.body("request", b"x" * 100).SerializeToString()
    assert parse_request(data).WhichOneof("request") == "request_body"
    assert parse_request(data[:-1]) == ProcessingRequest()


def test_header_values_are_read_from_either_field_raw_first() -> None:
    headers = HeaderMap()
    headers.headers.add(key="a", raw_value=b"raw", value="text")
    headers.headers.add(key="b", value="text")
    headers.headers.add(key="c")
    assert read_headers(headers) == {"a": "raw", "b": "text", "c": ""}


def test_header_names_are_lowered_and_repeated_values_joined() -> None:
    headers = HeaderMap()
    headers.headers.add(key="Accept", raw_value=b"a")
    headers.headers.add(key="accept", raw_value=b"b")
    assert read_headers(headers) == {"accept": "a,b"}


def test_header_bytes_that_are_not_utf_8_are_replaced() -> None:
    headers = HeaderMap()
    headers.headers.add(key="x", raw_value=b"\xff!")
    assert read_headers(headers) == {"x": "\ufffd!"}


def _hinted(**value: object) -> ProcessingRequest:
    message = proxy.headers("request", {})
    hint = Struct()
    hint.update({SUBSET: value["value"]})
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].CopyFrom(hint)
    return message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["10.0.0.1:8000", "10.0.0.2"], ("10.0.0.1:8000", "10.0.0.2")),
        (["[::1]:8000", "::1"], ("[::1]:8000", "::1")),
        ([], ()),
        ("", ()),
        (" 10.0.0.1 ,[::1]:8000,", ("10.0.0.1", "[::1]:8000")),
        # A malformed entry is left out, and never read as "all".
        ([5, "10.0.0.1:8000", None, ""], ("10.0.0.1:8000",)),
        ([5], ()),
        (5, ()),
        (None, ()),
        (True, ()),
        ({"a": "10.0.0.1"}, ()),
    ],
)
def test_subset_hint_in_every_form(value: object, expected: tuple[str, ...]) -> None:
    assert read_subset(_hinted(value=value)) == expected


def test_other_metadata_is_no_subset_hint() -> None:
    message = proxy.headers("request", {})
    assert read_subset(message) is None
    message.metadata_context.filter_metadata["envoy.lb"].update({SUBSET: "10.0.0.1"})
    assert read_subset(message) is None
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"other": "10.0.0.1"})
    assert read_subset(message) is None


def test_reading_a_hint_leaves_the_message_as_it_was() -> None:
    message = proxy.headers("request", {})
    message.metadata_context.SetInParent()
    before = message.SerializeToString()
    read_subset(message)
    read_served(message)
    assert message.SerializeToString() == before


def test_an_empty_served_value_falls_back_to_the_attribute() -> None:
    message = proxy.headers("response", {})
    served = {"x-gateway-destination-endpoint-served": ""}
    message.metadata_context.filter_metadata["envoy.lb"].update(served)
    assert read_served(message) is None
    message.attributes["any.filter"].update({"upstream.address": "10.0.0.1:8000"})
    assert read_served(message) == "10.0.0.1:8000"


def test_what_the_proxy_says_of_an_answer_is_read_as_numbers() -> None:
    message = ProcessingRequest()
    assert read_outcome(message) == (0, None)
    told = message.attributes["any.filter"]
    told.update({"upstream.request_attempt_count": 3, "response.flags": 32})
    assert read_outcome(message) == (3, 32)
    told.update({"upstream.request_attempt_count": 1, "response.flags": 0})
    assert read_outcome(message) == (1, 0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 1e300, "3", True, None])
def test_what_is_no_number_of_attempts_is_none(odd: object) -> None:
    message = ProcessingRequest()
    told = message.attributes["any.filter"]
    told.update({"upstream.request_attempt_count": odd, "response.flags": odd})
    assert read_outcome(message) == (0, None)


def _pieces(chunks: list[bytes], body: bytes) -> list[proxy.Answer]:
    """The chunks that are sent on when the request's body is rewritten."""
    stream = Stream(StreamSettings())
    first = proxy.headers("request", {":method": "POST"})
    mode = proxy.BodyMode.FULL_DUPLEX_STREAMED
    stream.receive(proxy.announce(first, mode, mode))
    for place, chunk in enumerate(chunks):
        stream.receive(proxy.body("request", chunk, end=place == len(chunks) - 1))
    sent = stream.picked(Pick((Endpoint("10.0.0.1:8000"),), body=body))
    answers = [proxy.Answer.read(one.message) for one in sent if isinstance(one, Send)]
    return [answer for answer in answers if answer.part == "request_body"]


@pytest.mark.parametrize(
    ("chunks", "size", "largest"),
    [
        ([b"x" * 100], 62_000, 62_000),
        ([b"x" * 100], 62_001, 62_000),
        ([b"x" * 100, b""], 300_000, 62_000),
        ([b"x" * 100_000, b"x" * 7], 300_000, 100_000),
        ([b"x"], 0, 0),
    ],
)
def test_a_rewritten_body_comes_in_chunks_that_any_proxy_takes(
    chunks: list[bytes], size: int, largest: int
) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    pieces = _pieces(chunks, body[:size])
    assert b"".join(piece.chunk or b"" for piece in pieces) == body[:size]
    assert max(len(piece.chunk or b"") for piece in pieces) == largest
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_held_bytes_are_those_of_the_body_until_it_goes_on() -> None:
    stream = Stream(StreamSettings())
    message = proxy.headers("request", {":method": "POST"})
    none = proxy.BodyMode.NONE
    stream.receive(proxy.announce(message, proxy.BodyMode.FULL_DUPLEX_STREAMED, none))
    assert (stream.state, stream.held_bytes) == ("request_holding", 0)
    stream.receive(proxy.body("request", b"x" * 1000))
    stream.receive(proxy.body("request", b"y", end=True))
    assert (stream.state, stream.held_bytes) == ("request_ended", 1001)
    stream.pass_on()
    assert (stream.state, stream.held_bytes) == ("answer_idle", 0)


def test_an_unknown_body_mode_ends_the_stream_cleanly() -> None:
    message = proxy.headers("request", {":method": "POST"})
    message.protocol_config.request_body_mode = 99  # type: ignore[assignment]
    (finish,) = Stream(StreamSettings()).receive(message)
    assert (finish.abort, finish.reason) == (False, "unknown_body_mode")  # type: ignore[union-attr]


ANY_TEXT = st.text(st.characters(), max_size=20)
"""Lone surrogates too, which have no UTF-8."""


@given(ANY_TEXT)
@example("\ud800")
def test_no_text_that_the_shell_says_raises(text: str) -> None:
    for answer in (
        Pick((Endpoint("10.0.0.1:8000"),), headers={"x-why": text}),
        Refusal(503, "no_endpoint", text, text),
    ):
        stream = Stream(StreamSettings(fallback_request_mode=proxy.BodyMode.NONE))
        stream.receive(proxy.headers("request", {":method": "GET"}, end=True))
        say = stream.picked if isinstance(answer, Pick) else stream.refused
        (sent,) = say(answer)  # type: ignore[operator]
        assert isinstance(sent, Send)
