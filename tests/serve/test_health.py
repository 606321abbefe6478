"""gRPC health and reflection (PROTOCOLS: picker protocol)."""

import grpc
import pytest
from aiohttp import ClientSession
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from extproc.demo.stack import _free_ports
from extproc.serve import App
from extproc.serve.server import EXT_PROC
from tests.serve.proxy import config, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("", "readiness", EXT_PROC, "inference-extension")


async def status(channel: grpc.aio.Channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


@pytest.mark.parametrize("name", [*READINESS, "liveness"])
async def test_every_name_that_gateways_ask_for_serves_once_ready(name: str) -> None:
    async with serving() as (_, channel):
        assert await status(channel, name) == SERVING


async def test_reflection_names_the_service() -> None:
    async with serving() as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]))
        answer = await call.read()
        names = [service.name for service in answer.list_services_response.service]
        assert EXT_PROC in names
        file = reflection_pb2.ServerReflectionRequest(file_containing_symbol=EXT_PROC)
        answer = await stub.ServerReflectionInfo(iter([file])).read()
        assert answer.file_descriptor_response.file_descriptor_proto


async def test_the_admin_port_tells_health_metrics_and_pools() -> None:
    (port,) = _free_ports(1)
    async with serving(config(admin=f"127.0.0.1:{port}")), ClientSession() as http:
        url = f"http://127.0.0.1:{port}"
        async with http.get(f"{url}/readyz") as ready, http.get(f"{url}/livez") as alive:
            assert (ready.status, alive.status) == (200, 200)
        async with http.get(f"{url}/metrics") as metrics:
            assert "homing_ready 1.0" in await metrics.text()
        async with http.get(f"{url}/pools") as pools:
            (pool,) = await pools.json()
        assert pool["models_loaded"] == ["alias", "demo-model"]
        assert [one["name"] for one in pool["instances"]] == ["a", "b", "c"]


async def test_a_homing_that_loads_is_alive_and_not_ready() -> None:
    app = App(config())
    port = await app._server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in READINESS:
            assert await status(channel, name) == NOT_SERVING
        assert await status(channel, "liveness") == SERVING
    await app.stop()
