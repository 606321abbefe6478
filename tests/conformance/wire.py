"""Any message of a proxy to a Homing in this process, over real gRPC, in any body mode."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from extproc.config import Config, Instance, Limits, Model, Pool
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.stream import BodyMode
from extproc.terms import Endpoint
from proto_gen.ext_proc_pb2 import (
    CommonResponse,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from tests.serve.proxy import CHAT, DESTINATION, METHOD, MODEL

SELECTION = "test-epp-endpoint-selection"
SERVED = "x-conformance-test-served-endpoint"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = f"{DESTINATION}-subset"

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


def pool_of(*endpoints: str, conformance: bool = False, **changes: Any) -> Config:
    """One pool with these endpoints, which nobody runs."""
    pool = Pool(
        name="test",
        models=(Model(name=MODEL, aliases=("alias",), tokenizer=DEMO_TOKENIZER),),
        instances=tuple(Instance(endpoint=Endpoint(endpoint)) for endpoint in endpoints),
        metrics="off",
    )
    defaults: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "pools": (pool,),
        "limits": Limits(pick_timeout_ms=20_000),
        "conformance": conformance,
    }
    return Config(**{**defaults, **changes})


# --- what the proxy says ---


def request_headers(
    headers: Headers = (), *, path: str = CHAT, method: str = "POST", end: bool = False
) -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_headers.end_of_stream = end
    pseudo = [(":method", method), (":path", path)]
    for name, value in [*pseudo, *_pairs(headers)]:
        header = message.request_headers.headers.headers.add()
        header.key, header.raw_value = name, value.encode()
    return message


def request_body(data: bytes, *, end: bool = True) -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = end
    return message


def request_trailers() -> ProcessingRequest:
    message = ProcessingRequest()
    message.request_trailers.SetInParent()
    return message


def response_headers(headers: Headers = ((":status", "200"),)) -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_headers.SetInParent()
    for name, value in _pairs(headers):
        header = message.response_headers.headers.headers.add()
        header.key, header.raw_value = name, value.encode()
    return message


def response_body(data: bytes, *, end: bool = False) -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_body.body = data
    message.response_body.end_of_stream = end
    return message


def response_trailers() -> ProcessingRequest:
    message = ProcessingRequest()
    message.response_trailers.SetInParent()
    return message


def with_metadata(message: ProcessingRequest, namespace: str, **values: Any) -> ProcessingRequest:
    """The message with filter metadata; "_" in a key stands for "-"."""
    struct = message.metadata_context.filter_metadata[namespace]
    struct.update({key.replace("_", "-"): value for key, value in values.items()})
    return message


def with_hint(message: ProcessingRequest, hint: str | Sequence[Any]) -> ProcessingRequest:
    """The message with this subset hint."""
    return with_metadata(message, SUBSET_NAMESPACE, **{SUBSET: hint})


def _pairs(headers: Headers) -> Iterable[tuple[str, str]]:
    return headers.items() if isinstance(headers, Mapping) else headers


# --- the stream ---


class Wire:
    """One HTTP request's stream."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        request: BodyMode = BodyMode.FULL_DUPLEX_STREAMED,
        response: BodyMode = BodyMode.FULL_DUPLEX_STREAMED,
    ) -> None:
        self._modes = request, response
        self._begun = False
        self.announce = True
        """Whether the first message tells the modes, as all but old proxies do."""
        self._call = channel.stream_stream(
            METHOD,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )()

    async def say(self, *messages: ProcessingRequest) -> None:
        for message in messages:
            if self.announce and not self._begun:
                request, response = self._modes
                config = ProtocolConfiguration(
                    request_body_mode=request.name, response_body_mode=response.name
                )
                message.protocol_config.CopyFrom(config)
            self._begun = True
            await self._call.write(message)

    async def hear(self, count: int) -> list[ProcessingResponse]:
        """As many answers as are asked for; those that are too many fail `end`."""
        async with asyncio.timeout(30):
            answers = [await self._call.read() for _ in range(count)]
        assert all(isinstance(answer, ProcessingResponse) for answer in answers), answers
        return answers

    async def end(self) -> None:
        """The HTTP answer is over: nothing more was said, and the stream ends cleanly."""
        await self._call.done_writing()
        assert await self._call.read() is grpc.aio.EOF

    async def ask(self, *messages: ProcessingRequest) -> list[ProcessingResponse]:
        """Say these, hear an answer to each, and end the stream."""
        await self.say(*messages)
        answers = await self.hear(len(messages))
        await self.end()
        return answers


# --- what Homing says ---


def kinds(answers: Sequence[ProcessingResponse]) -> list[str | None]:
    return [answer.WhichOneof("response") for answer in answers]


def common(answer: ProcessingResponse) -> CommonResponse:
    """What header and body answers have in common."""
    return getattr(answer, str(answer.WhichOneof("response"))).response  # type: ignore[no-any-return]


def set_headers(answer: ProcessingResponse) -> dict[str, str]:
    mutation = (
        answer.immediate_response.headers
        if answer.HasField("immediate_response")
        else common(answer).header_mutation
    )
    return {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}


def endpoints(answer: ProcessingResponse) -> list[str]:
    """The picked endpoints, on which header and metadata agree."""
    metadata = MessageToDict(answer.dynamic_metadata)["envoy.lb"]
    assert metadata[DESTINATION] == set_headers(answer)[DESTINATION]
    listed: list[str] = metadata[DESTINATION].split(",")
    return listed


def chunk(answer: ProcessingResponse) -> tuple[bytes, bool]:
    """A chunk that was sent back in FULL_DUPLEX_STREAMED, and whether it ends the body."""
    streamed = common(answer).body_mutation.streamed_response
    return streamed.body, streamed.end_of_stream


async def pick(
    channel: grpc.aio.Channel, headers: ProcessingRequest, body: bytes | None = None
) -> ProcessingResponse:
    """The answer that carries the pick or the refusal: for a request with or without a body."""
    wire = Wire(channel, BodyMode.BUFFERED, BodyMode.NONE)
    if body is None:
        headers.request_headers.end_of_stream = True
        (answer,) = await wire.ask(headers)
    else:
        _, answer = await wire.ask(headers, request_body(body))
    return answer
