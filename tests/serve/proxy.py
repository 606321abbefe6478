"""A proxy's side of ext_proc: real gRPC to a Homing in this process."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from extproc.config import Config, Instance, Limits, Model, Pool
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.serve import App
from extproc.terms import Endpoint, InstanceId
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from proto_gen.processing_mode_pb2 import ProcessingMode

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"
CHAT = "/v1/chat/completions"
MODEL = "demo-model"
ENDPOINTS = {"a": "10.0.0.1:8000", "b": "10.0.0.2:8000", "c": "10.0.0.3:8000"}


def config(**changes: Any) -> Config:
    """Three instances that nobody runs: what is picked is what is tested."""
    pool = Pool(
        name="test",
        models=(Model(name=MODEL, aliases=("alias",), tokenizer=DEMO_TOKENIZER),),
        instances=tuple(
            Instance(name=InstanceId(name), endpoint=Endpoint(endpoint))
            for name, endpoint in ENDPOINTS.items()
        ),
        metrics="off",
    )
    defaults: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "pools": (pool,),
        "explain": True,
        "limits": Limits(pick_timeout_ms=20_000),
    }
    return Config(**{**defaults, **changes})


UNLIMITED = [("grpc.max_receive_message_length", -1)]


@asynccontextmanager
async def serving(settings: Config | None = None) -> AsyncIterator[tuple[App, grpc.aio.Channel]]:
    """A ready Homing, and a channel to it."""
    app = App(settings or config())
    port = await app.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", UNLIMITED) as channel:
            yield app, channel
    finally:
        await app.stop()


def chat(words: str, **more: Any) -> bytes:
    return json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": words}], **more}
    ).encode()


LONG = "The ships bring spice and salt to the harbour. " * 40
"""More than twenty blocks."""


class Exchange:
    """One HTTP request as Envoy shows it, message by message; in BUFFERED if not said."""

    def __init__(
        self, channel: grpc.aio.Channel, mode: str = "BUFFERED", response_mode: str = "NONE"
    ) -> None:
        self._mode = ProcessingMode.BodySendMode.Value(mode)
        self._response_mode = ProcessingMode.BodySendMode.Value(response_mode)
        call = channel.stream_stream(
            METHOD,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        self.call = call()

    async def headers(
        self,
        path: str = CHAT,
        method: str = "POST",
        end: bool = False,
        subset: Sequence[str] | None = None,
        more: Mapping[str, str] | None = None,
        pool: str | None = None,
    ) -> ProcessingResponse:
        """The answer to the headers."""
        await self.send_headers(path, method, end, subset, more, pool)
        return await self.read()

    async def send_headers(
        self,
        path: str = CHAT,
        method: str = "POST",
        end: bool = False,
        subset: Sequence[str] | None = None,
        more: Mapping[str, str] | None = None,
        pool: str | None = None,
    ) -> None:
        """Where the answer to the headers waits for the body (FULL_DUPLEX_STREAMED)."""
        message = ProcessingRequest()
        config = message.protocol_config
        config.request_body_mode = self._mode
        config.response_body_mode = self._response_mode
        message.request_headers.end_of_stream = end
        for key, value in {":method": method, ":path": path, **(more or {})}.items():
            header = message.request_headers.headers.headers.add()
            header.key, header.raw_value = key, value.encode()
        if subset is not None:
            hint = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
            hint.get_or_create_list(f"{DESTINATION}-subset").extend(subset)
        if pool is not None:
            message.metadata_context.filter_metadata["homing"]["pool"] = pool
        await self.call.write(message)

    async def chunk(self, data: bytes, end: bool = False) -> None:
        """A piece of the body, whose answer is not waited for."""
        message = ProcessingRequest()
        message.request_body.body = data
        message.request_body.end_of_stream = end
        await self.call.write(message)

    async def body(self, data: bytes) -> ProcessingResponse:
        await self.chunk(data, end=True)
        return await self.read()

    async def answer(
        self,
        status: int,
        served: str | None = None,
        attempts: int | None = None,
        flags: int | None = None,
    ) -> ProcessingResponse:
        """The engine's answer; attempts, flags: what Envoy tells of it."""
        message = ProcessingRequest()
        outcome = {"upstream.request_attempt_count": attempts, "response.flags": flags}
        told = {name: value for name, value in outcome.items() if value is not None}
        if told:
            message.attributes["envoy.filters.http.ext_proc"].update(told)
        header = message.response_headers.headers.headers.add()
        header.key, header.raw_value = ":status", str(status).encode()
        if served is not None:
            message.attributes["envoy.filters.http.ext_proc"].update({"upstream.address": served})
        return await self._say(message)

    async def answer_body(self, data: bytes, end: bool = False) -> ProcessingResponse:
        """A piece of the engine's answer, where it is shown."""
        message = ProcessingRequest()
        message.response_body.body = data
        message.response_body.end_of_stream = end
        return await self._say(message)

    async def end(self) -> None:
        """The HTTP answer is over, and with it the stream."""
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF

    async def _say(self, message: ProcessingRequest) -> ProcessingResponse:
        await self.call.write(message)
        return await self.read()

    async def read(self) -> ProcessingResponse:
        """The next answer."""
        reply = await self.call.read()
        assert isinstance(reply, ProcessingResponse)
        return reply


def endpoints(reply: ProcessingResponse) -> list[str]:
    """The picked endpoints, which header and metadata must agree on."""
    part = reply.WhichOneof("response")
    assert part in ("request_headers", "request_body"), reply
    mutation = getattr(reply, part).response.header_mutation
    headers = {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}
    metadata = reply.dynamic_metadata["envoy.lb"][DESTINATION]
    assert headers[DESTINATION] == metadata
    return str(metadata).split(",")


def picked(reply: ProcessingResponse) -> list[str]:
    """Names of the picked instances."""
    names = {endpoint: name for name, endpoint in ENDPOINTS.items()}
    return [names[endpoint] for endpoint in endpoints(reply)]


async def ask(channel: grpc.aio.Channel, body: bytes, path: str = CHAT) -> tuple[Exchange, str]:
    """A request up to its pick: the exchange, and the name of the first choice."""
    exchange = Exchange(channel)
    await exchange.headers(path)
    return exchange, picked(await exchange.body(body))[0]


def sample(app: App, name: str, **labels: str) -> float:
    """A metric's value; 0 where it has none."""
    return app.metrics.registry.get_sample_value(name, labels) or 0.0
