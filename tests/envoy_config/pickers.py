"""Pickers for Envoy: Homing itself, and one that dies on cue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.config import Config
from extproc.serve import App
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"


@asynccontextmanager
async def homing(settings: Config) -> AsyncIterator[str]:
    """Homing in this process; gives its address. Port 0 of `listen` is any free one."""
    app = App(settings)
    port = await app.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await app.stop()


@asynccontextmanager
async def dies_after_the_body() -> AsyncIterator[str]:
    """A picker whose streams break once they have shown a piece of a body; gives its address.

    Headers are answered where the mode lets Envoy wait for that before it sends the body.
    """

    async def process(_: object, context: grpc.aio.ServicerContext) -> None:
        while True:
            message: ProcessingRequest = await context.read()
            if message is grpc.aio.EOF:
                return
            if message.HasField("request_body"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "died")
            if message.HasField("response_headers"):
                await context.write(ProcessingResponse(response_headers={}))
            streamed = message.protocol_config.request_body_mode == 4
            if message.HasField("request_headers") and not (
                streamed and not message.request_headers.end_of_stream
            ):
                await context.write(ProcessingResponse(request_headers={}))

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
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
