"""What a proxy sends, and what it understands of the answers."""

from dataclasses import dataclass

from extproc.stream import BodyMode
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse

DESTINATION = "x-gateway-destination-endpoint"
DUPLEX = (BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC)


def headers(side: str, values: dict[str, str], end: bool = False) -> ProcessingRequest:
    """side: request or response."""
    message = ProcessingRequest()
    shown = getattr(message, f"{side}_headers")
    for name, value in values.items():
        shown.headers.headers.add(key=name, raw_value=value.encode())
    shown.end_of_stream = end
    shown.SetInParent()
    return message


def body(side: str, data: bytes, end: bool = False) -> ProcessingRequest:
    """One chunk."""
    message = ProcessingRequest()
    chunk = getattr(message, f"{side}_body")
    chunk.body = data
    chunk.end_of_stream = end
    chunk.SetInParent()
    return message


def trailers(side: str) -> ProcessingRequest:
    """Trailers, always the end."""
    message = ProcessingRequest()
    getattr(message, f"{side}_trailers").SetInParent()
    return message


def announce(
    message: ProcessingRequest, request: BodyMode, response: BodyMode, early: bool = False
) -> ProcessingRequest:
    """The same message as the first of a stream."""
    message.protocol_config.request_body_mode = request.value
    message.protocol_config.response_body_mode = response.value
    message.protocol_config.send_body_without_waiting_for_header_response = early
    return message


@dataclass(frozen=True)
class Answer:
    """An answer as a proxy reads it.

    part: the field that is set. chunk, end: of a streamed response, else None and False.
    replaced: the body that it puts in place, b"" where it clears it, else None.
    destination: in the header mutation; picked: in the dynamic metadata.
    """

    part: str
    chunk: bytes | None
    end: bool
    replaced: bytes | None
    destination: str | None
    picked: str | None

    @classmethod
    def read(cls, data: bytes) -> "Answer":
        response = ProcessingResponse.FromString(data)
        part = response.WhichOneof("response")
        assert part is not None, "a proxy fails the request where no part is set"
        chunk, end, replaced, destination = None, False, None, None
        if part.endswith(("_headers", "_body")):
            common = getattr(response, part).response
            mutation = common.body_mutation
            match mutation.WhichOneof("mutation"):
                case "streamed_response":
                    chunk = mutation.streamed_response.body
                    end = mutation.streamed_response.end_of_stream
                case "body":
                    replaced = mutation.body
                case "clear_body":
                    replaced = b""
            for option in common.header_mutation.set_headers:
                if option.header.key == DESTINATION:
                    destination = option.header.raw_value.decode()
        picked = None
        if response.HasField("dynamic_metadata"):
            assert list(response.dynamic_metadata.fields) == ["envoy.lb"]
            fields = response.dynamic_metadata.fields["envoy.lb"].struct_value.fields
            picked = fields[DESTINATION].string_value
        return cls(part, chunk, end, replaced, destination, picked)
