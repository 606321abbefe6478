"""The only place that reads or builds ext_proc's protobuf messages.

Answers leave serialised, so that the usual ones are constants. A streamed chunk is framed by hand:
its message nests five deep around up to a megabyte, and every level of a built message is a copy.
"""

import json
from collections.abc import Iterable, Mapping
from enum import IntEnum, unique
from functools import lru_cache
from typing import Final, NamedTuple

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from extproc.stream.events import BodyMode, Pick, Refusal, Reply
from extproc.stream.headers import (
    CONTROL_HEADERS,
    DESTINATION,
    METADATA_NAMESPACE,
    OWN_PREFIX,
    POOL_KEY,
    POOL_NAMESPACE,
    REASON,
    RESPONSE_FLAGS,
    ROUTE_METADATA,
    SERVED,
    SUBSET,
    SUBSET_NAMESPACE,
    UPSTREAM_ADDRESS,
    UPSTREAM_ATTEMPTS,
)
from proto_gen.base_pb2 import HeaderMap, HeaderValueOption, Metadata
from proto_gen.ext_proc_pb2 import (
    CommonResponse,
    HeaderMutation,
    HttpBody,
    ProcessingRequest,
    ProcessingResponse,
)


@unique
class Part(IntEnum):
    """A part of an HTTP message, by the number of its answer's field in `ProcessingResponse`."""

    REQUEST_HEADERS = 1
    RESPONSE_HEADERS = 2
    REQUEST_BODY = 3
    RESPONSE_BODY = 4
    REQUEST_TRAILERS = 5
    RESPONSE_TRAILERS = 6


PARTS: Final[Mapping[str | None, Part]] = {part.name.lower(): part for part in Part}
"""By the name of the field that is set in a `ProcessingRequest`'s oneof."""


class Protocol(NamedTuple):
    """What the proxy says on a stream's first message. early: the body does not wait for the
    headers' answer."""

    request: BodyMode
    response: BodyMode
    early: bool


# --- reading ---


def parse_request(data: bytes) -> ProcessingRequest:
    """Deserialise; never raises: bytes that are no message become an empty one, which no state
    accepts."""
    try:
        return ProcessingRequest.FromString(data)
    except DecodeError:
        return ProcessingRequest()


def read_protocol(message: ProcessingRequest) -> Protocol | None:
    """The modes that the proxy announces; None where it does not.

    Raises ValueError for a body mode that is not known.
    """
    if not message.HasField("protocol_config"):
        return None
    config = message.protocol_config
    return Protocol(
        BodyMode(config.request_body_mode),
        BodyMode(config.response_body_mode),
        config.send_body_without_waiting_for_header_response,
    )


def read_headers(headers: HeaderMap) -> dict[str, str]:
    """Names lower-case, repeated ones joined by ","; bytes that are not UTF-8 are replaced."""
    read: dict[str, str] = {}
    for header in headers.headers:
        name = header.key.lower()
        raw = header.raw_value
        value = raw.decode("utf-8", "replace") if raw else header.value
        read[name] = f"{read[name]},{value}" if name in read else value
    return read


def control_headers(headers: Mapping[str, str]) -> list[str]:
    """Names of the headers that a client must not send."""
    return [name for name in headers if name in CONTROL_HEADERS or name.startswith(OWN_PREFIX)]


def read_subset(message: ProcessingRequest) -> tuple[str, ...] | None:
    """The subset hint on this message, None without one.

    A list of strings or one string with commas; blanks are dropped. A hint of any other type
    allows nothing: it was meant as a restriction.
    """
    if not message.HasField("metadata_context"):
        return None
    hint = _metadata(message, SUBSET_NAMESPACE, SUBSET)
    if hint is None:
        return None
    match hint.WhichOneof("kind"):
        case "string_value":
            entries = hint.string_value.split(",")
        case "list_value":
            entries = [entry.string_value for entry in hint.list_value.values]
        case _:
            entries = []
    return tuple(entry for raw in entries if (entry := raw.strip()))


def read_served(message: ProcessingRequest) -> str | None:
    """The endpoint that answered, from metadata or else from Envoy's attribute; None if untold."""
    if message.HasField("metadata_context"):
        served = _metadata(message, METADATA_NAMESPACE, SERVED)
        if served is not None and served.string_value:
            return served.string_value
    return read_attribute(message, UPSTREAM_ADDRESS)


def read_outcome(message: ProcessingRequest) -> tuple[int, int | None]:
    """(attempts, flags) of `Answered`."""
    attempts, flags = read_number(message, UPSTREAM_ATTEMPTS), read_number(message, RESPONSE_FLAGS)
    return attempts or 0, flags


def read_pool(message: ProcessingRequest) -> str | None:
    """The pool that the request's metadata names, or else its route's; None if neither does.

    A client can set neither of them.
    """
    if message.HasField("metadata_context"):
        named = _metadata(message, POOL_NAMESPACE, POOL_KEY)
        if named is not None and named.string_value:
            return named.string_value
    route = read_attribute(message, ROUTE_METADATA)
    return _route_pool(route) if route is not None else None


@lru_cache(maxsize=256)  # a route's metadata is the same for all its requests
def _route_pool(text: str) -> str | None:
    try:
        metadata = text_format.Parse(text, Metadata(), allow_unknown_field=True)
    except text_format.ParseError:
        return None
    return metadata.filter_metadata[POOL_NAMESPACE].fields[POOL_KEY].string_value or None


def read_attribute(message: ProcessingRequest, name: str) -> str | None:
    """A string attribute, whichever filter's name it was sent under; None if absent or empty."""
    for attributes in message.attributes.values():
        value = attributes.fields.get(name)
        if value is not None:
            return value.string_value or None
    return None


def read_number(message: ProcessingRequest, name: str) -> int | None:
    """A whole number among the attributes; None if absent or no such number."""
    for attributes in message.attributes.values():
        value = attributes.fields.get(name)
        if value is not None and value.HasField("number_value"):
            number = value.number_value
            return int(number) if 0 <= number < 2**53 else None
    return None


def _metadata(message: ProcessingRequest, namespace: str, key: str) -> Value | None:
    # Not by []: a protobuf map makes the entry that it looks up.
    found = message.metadata_context.filter_metadata.get(namespace)
    return found.fields.get(key) if found is not None else None


END: Final = b"\x10\x01"
_END_WITHOUT_MESSAGE: Final = b"\x18\x01"
_COMPRESSED: Final = b"\x20\x01"


def read_flags(body: HttpBody) -> bytes:
    """All of a chunk but its data, as it stands on the wire: alike in `StreamedBodyResponse`."""
    flags = END if body.end_of_stream else b""
    if body.end_of_stream_without_message:
        flags += _END_WITHOUT_MESSAGE
    if body.grpc_message_compressed:
        flags += _COMPRESSED
    return flags


def ends(flags: bytes) -> bool:
    """Whether a chunk with these flags is the last of its side, with no trailers after it."""
    return END in flags or _END_WITHOUT_MESSAGE in flags


# --- building ---


def _tag(part: Part) -> bytes:
    return bytes((part << 3 | 2,))


CONTINUE: Final[Mapping[Part, bytes]] = {part: _tag(part) + b"\x00" for part in Part}
"""The answer that changes nothing: the part's field, set and empty."""


def build_streamed(part: Part, data: bytes | memoryview, flags: bytes) -> bytes:
    """A chunk sent back in FULL_DUPLEX_STREAMED. One copy of the data.

    part: REQUEST_BODY or RESPONSE_BODY; flags: as `read_flags` gives them.
    """
    return b"".join((_streamed_head(part, len(data), len(flags)), data, flags))


@lru_cache(maxsize=1024)  # proxies read into buffers of a few sizes
def _streamed_head(part: Part, data_len: int, flags_len: int) -> bytes:
    """The tags and lengths down to the data: body answer, common, mutation, streamed, body."""
    head = b"\x0a" + _varint(data_len) if data_len else b""
    size = data_len + flags_len
    for tag in (b"\x1a", b"\x1a", b"\x0a", _tag(part)):
        head = tag + _varint(size + len(head)) + head
    return head


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def build_picked(
    part: Part,
    pick: Pick,
    remove: Iterable[str],
    body: bytes | None,
    streamed: tuple[bytes | memoryview, bytes] | None = None,
) -> bytes:
    """The answer that carries a pick.

    part: the first of the request's parts that is still unanswered. Trailers can carry metadata
        only: their header mutation would change the trailers.
    body: what replaces the request's body, announced by `content-length`; None leaves it.
        On a headers answer it is only announced.
    streamed: data and flags of the chunk that this answers in FULL_DUPLEX_STREAMED, where the
        headers have gone on before.
    """
    endpoints = ",".join(pick.endpoints)
    response = ProcessingResponse()
    if part is Part.REQUEST_TRAILERS:
        response.request_trailers.SetInParent()
    elif streamed is not None:
        data, flags = streamed
        response.request_body.response.body_mutation.streamed_response.MergeFromString(flags)
        response.request_body.response.body_mutation.streamed_response.body = bytes(data)
    else:
        common = _common(response, part)
        mutation = common.header_mutation
        _set(mutation, DESTINATION, endpoints)
        for name, value in pick.headers.items():
            _set(mutation, name, value)
        if body is not None:
            _set(mutation, "content-length", str(len(body)))
            if part is Part.REQUEST_BODY:
                common.body_mutation.body = body
        # Some proxies remove after they set.
        ours = (DESTINATION, *pick.headers)
        mutation.remove_headers.extend(name for name in remove if name not in ours)
        common.clear_route_cache = True
    fields = response.dynamic_metadata.fields[METADATA_NAMESPACE].struct_value.fields
    fields[DESTINATION].string_value = endpoints
    for name, value in pick.metadata.items():
        fields[name].string_value = value
    return response.SerializeToString()


def build_headers(
    part: Part,
    *,
    headers: Mapping[str, str],
    remove: Iterable[str] = (),
    override: tuple[BodyMode, BodyMode] | None = None,
) -> bytes:
    """A headers answer without a pick. override: body modes of request and response from now on."""
    response = ProcessingResponse()
    common = _common(response, part)
    for name, value in headers.items():
        _set(common.header_mutation, name, value)
    common.header_mutation.remove_headers.extend(remove)
    if override is not None:
        request, answer = override
        response.mode_override.request_body_mode = request.value  # type: ignore[assignment]
        response.mode_override.response_body_mode = answer.value  # type: ignore[assignment]
    return response.SerializeToString()


def build_more_time(seconds: float) -> bytes:
    """A message that only has the proxy wait longer for the next."""
    response = ProcessingResponse()
    response.override_message_timeout.FromMilliseconds(round(seconds * 1000))
    return response.SerializeToString()


def build_replaced(part: Part, data: bytes, announced: bool = False) -> bytes:
    """The answer to a chunk that puts other data in its place.

    part: REQUEST_BODY or RESPONSE_BODY. announced: whether `content-length` tells its size, where
        the chunk is the whole body and the headers have not gone on.
    """
    response = ProcessingResponse()
    common = _common(response, part)
    if announced:
        _set(common.header_mutation, "content-length", str(len(data)))
    if data:
        common.body_mutation.body = data
    else:
        common.body_mutation.clear_body = True
    return response.SerializeToString()


_ERROR_TYPES: Final = {429: "rate_limit_error"}
"""The `type` of an OpenAI error by status; other 4xx and 5xx have one each."""


def build_refused(refusal: Refusal) -> bytes:
    """The ImmediateResponse with the error as OpenAI's clients read it."""
    server = refusal.status >= 500
    kind = _ERROR_TYPES.get(refusal.status, "server_error" if server else "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "code": refusal.code}
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = refusal.status  # type: ignore[assignment]
    immediate.body = json.dumps({"error": error}).encode()
    immediate.details = f"homing_{refusal.code}"
    _set(immediate.headers, "content-type", "application/json")
    if refusal.reason and refusal.status in (429, 503):
        _set(immediate.headers, REASON, refusal.reason)
    if refusal.retry_after_s is not None:
        _set(immediate.headers, "retry-after", str(refusal.retry_after_s))
    return response.SerializeToString()


def build_reply(reply: Reply) -> bytes:
    """The ImmediateResponse with the JSON of a reply."""
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = 200  # type: ignore[assignment]
    immediate.body = reply.body
    immediate.details = f"homing_{reply.name}"
    _set(immediate.headers, "content-type", "application/json")
    return response.SerializeToString()


def _common(response: ProcessingResponse, part: Part) -> CommonResponse:
    match part:
        case Part.REQUEST_HEADERS:
            common = response.request_headers.response
        case Part.RESPONSE_HEADERS:
            common = response.response_headers.response
        case Part.RESPONSE_BODY:
            common = response.response_body.response
        case _:
            common = response.request_body.response
    common.SetInParent()
    return common


def _set(mutation: HeaderMutation, name: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    option.header.key = name
    option.header.raw_value = value.encode("utf-8", "replace")
