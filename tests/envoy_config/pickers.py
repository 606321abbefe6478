"""Pickers for Envoy: Homing itself, and one that says what a test tells it to say."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.config import Config
from extproc.serve import App
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
FULL_DUPLEX = 4

Reply = Callable[[ProcessingRequest], AsyncIterator[ProcessingResponse]]
"""The answers to one message. ConnectionError breaks the stream."""


@asynccontextmanager
async def homing(settings: Config) -> AsyncIterator[str]:
    """Homing in this process; gives its address. Port 0 of `listen` is any free one."""
    app = App(settings)
    port = await app.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await app.stop()


@dataclass(slots=True)
class Scripted:
    """A picker that listens. messages: all that Envoy sent, in order."""

    server: grpc.aio.Server
    endpoint: str
    messages: list[ProcessingRequest] = field(default_factory=list)


@asynccontextmanager
async def scripted(reply: Reply) -> AsyncIterator[Scripted]:
    """A picker that answers each message as `reply` says, and is healthy."""

    async def process(_: object, context: grpc.aio.ServicerContext) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            picker.messages.append(message)
            try:
                async for answer in reply(message):
                    await context.write(answer)
            except ConnectionError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=ProcessingRequest.FromString,
        response_serializer=ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(EXT_PROC, {"Process": method}),)
    )
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set(EXT_PROC, health_pb2.HealthCheckResponse.SERVING)
    picker = Scripted(server, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        yield picker
    finally:
        await server.stop(None)


async def carry_on(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
    """Let everything pass as it is (BUFFERED)."""
    match message.WhichOneof("request"):
        case "request_headers":
            yield ProcessingResponse(request_headers={})
        case "request_body":
            yield ProcessingResponse(request_body={})
        case "response_headers":
            yield ProcessingResponse(response_headers={})
        case "response_body":
            yield ProcessingResponse(response_body={})


async def die_with_the_body(message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
    """Break once a piece of a body is shown.

    Headers are answered where the mode lets Envoy wait for that before it sends the body.
    """
    if message.HasField("request_body"):
        raise ConnectionError("died")
    duplex = message.protocol_config.request_body_mode == FULL_DUPLEX
    if not duplex or message.request_headers.end_of_stream:
        async for answer in carry_on(message):
            yield answer
