"""The gRPC server: ext_proc, health and reflection on one port."""

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from extproc.errors import ConfigError
from extproc.serve.process import Processor
from extproc.serve.tls import ServerTls
from extproc.stream import parse_request

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"

LIVENESS = "liveness"
READINESS: tuple[str, ...] = ("", "readiness", EXT_PROC, "inference-extension")
"""Health names that say NOT_SERVING until every model is loaded, and again while draining."""

LEAST_MESSAGE_BYTES = 4 * 1024 * 1024
"""gRPC's own default: headers, metadata and chunks always fit."""

MESSAGE_ROOM = 2
"""Times the largest body that is read: as large a gRPC message is received. A body between the two
is routed by load; above it gRPC ends the stream and the proxy goes on alone."""

_NO_END_S = 86_400.0
"""gRPC refuses new streams only together with a time limit for the open ones."""

FLUSH_S = 1.0
"""How long last answers may take to leave, and who watches our health to hear of it."""


class Server:
    """Serves ext_proc until it is stopped. tls: None serves plaintext."""

    def __init__(
        self, processor: Processor, listen: str, max_body_bytes: int, tls: ServerTls | None
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._closing: asyncio.Future[None] | None = None
        limit = max(MESSAGE_ROOM * max_body_bytes, LEAST_MESSAGE_BYTES)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", 2**31 - 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (EXT_PROC, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        # Answers are serialised by `stream`, most of them once for all.
        method = grpc.stream_stream_rpc_method_handler(
            processor.process, request_deserializer=parse_request
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(EXT_PROC, {"Process": method}),)
        )

    async def start(self) -> int:
        """Bind and serve, alive but not ready. Returns the port, 0 for a unix socket."""
        try:
            port: int = (
                self._server.add_secure_port(self._listen, self._tls.credentials())
                if self._tls
                else self._server.add_insecure_port(self._listen)
            )
        except RuntimeError as error:
            raise ConfigError(f"listen: cannot bind {self._listen}: {error}") from None
        await self._say(READINESS, serving=False)
        await self._say((LIVENESS,), serving=True)
        await self._server.start()
        return port

    async def ready(self) -> None:
        """Every model is loaded: tell those who ask."""
        await self._say(READINESS, serving=True)

    async def not_ready(self) -> None:
        """Tell those who ask that nothing more should be sent here; what is sent is served."""
        await self._say(READINESS, serving=False)

    def refuse_new(self) -> None:
        """Close the port, and take no new streams on the connections that are open."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._server.stop(_NO_END_S))

    async def stop(self) -> None:
        """End everything now; what is ending by itself has FLUSH_S for it. May be called twice."""
        await self._server.stop(FLUSH_S)
        if self._closing is not None:
            await self._closing

    async def _say(self, names: Iterable[str], serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in names:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)
