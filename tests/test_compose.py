import asyncio
import json
import re
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import aiohttp
import grpc
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from extproc.cli import app
from extproc.config import EtcdLog, load_config
from extproc.config.addresses import split_endpoint
from extproc.envoy import bootstrap_yaml
from tests.compose import (
    BUILT_IMAGE,
    DOCKERFILE,
    LOOPBACK,
    NETWORK,
    ROOT,
    Compose,
    Service,
    build_steps,
    container,
    local_command,
)
from tests.envoy_config.running import refusal

COMPOSE = Compose()
SERVICES = COMPOSE.services.values()
CONFIG = load_config(ROOT / "envoy" / "homing.yaml")

each_service = pytest.mark.parametrize("service", SERVICES, ids=COMPOSE.services)


def test_envoys_bootstrap_is_the_one_that_its_configuration_makes() -> None:
    committed = (ROOT / "envoy" / "envoy.yaml").read_text()
    assert committed == bootstrap_yaml(CONFIG), (
        "run homing envoy-config --config envoy/homing.yaml > envoy/envoy.yaml"
    )


def test_envoy_accepts_its_bootstrap(tmp_path: Path) -> None:
    assert refusal((ROOT / "envoy" / "envoy.yaml").read_text(), tmp_path) == ""


@each_service
def test_every_image_is_pinned_or_built_here(service: Service) -> None:
    if service.image == BUILT_IMAGE:
        built = [s.name for s in SERVICES if s.fields.get("build")]
        assert built == ["homing"]
        assert service.name in built or "homing" in service.waits_for
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service.image)


@each_service
def test_every_mounted_file_is_in_the_repository(service: Service) -> None:
    assert [str(file) for file in service.mounts.values() if not file.is_file()] == []


@each_service
def test_every_file_that_a_command_names_is_mounted(service: Service) -> None:
    named = [word for word in service.command if word.startswith("/")]
    assert set(named) == {*service.mounts, *service.data}


def test_every_volume_is_declared_and_used_once() -> None:
    used = [volume for service in SERVICES for volume in service.data.values()]
    assert sorted(used) == sorted(COMPOSE.fields["volumes"])


@each_service
def test_every_command_of_ours_is_one_that_the_command_line_knows(service: Service) -> None:
    if service.image == BUILT_IMAGE:
        _, *arguments = service.command
        _, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        assert bound.kwargs or bound.args


@each_service
def test_every_dependency_is_a_service_that_can_fulfil_it(service: Service) -> None:
    for name, condition in service.waits_for.items():
        needed = COMPOSE.services[name]
        assert condition in ("service_started", "service_healthy")
        assert condition == "service_started" or needed.healthcheck


def test_no_service_waits_for_itself() -> None:
    waiting = {service.name: set(service.waits_for) for service in SERVICES}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"{waiting} wait for each other"
        for name in free:
            del waiting[name]


def test_every_service_has_an_address_of_its_own_in_the_network() -> None:
    (pool,) = COMPOSE.fields["networks"]["homing"]["ipam"]["config"]
    subnet = ip_network(pool["subnet"])
    addresses = [ip_address(service.address) for service in SERVICES]
    assert len(set(addresses)) == len(addresses)
    assert all(address in subnet for address in addresses)
    assert str(subnet).startswith(NETWORK)
    # Docker's gateway has the first one.
    assert subnet[1] not in addresses


def test_the_pool_lists_the_engines_as_they_run() -> None:
    (pool,) = CONFIG.pools
    (model,) = pool.models
    listed = {i.name: (i.endpoint, pool.capacity_of(i)) for i in pool.instances}
    running = {
        engine.option("--name"): (
            f"{engine.address}:{engine.option('--port')}",
            int(engine.option("--blocks")) - 1,
        )
        for engine in COMPOSE.engines
    }
    assert listed == running
    assert len(running) == 3
    assert [engine.name for engine in COMPOSE.engines] == list(running)
    assert all(engine.option("--host") == "0.0.0.0" for engine in COMPOSE.engines)
    _, bound, _ = app.parse_args(["engine"], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    settings = bound.arguments["settings"]
    assert (model.name, pool.block_size) == (settings.model, settings.block_size)
    assert model.tokenizer.resolve() == settings.tokenizer.resolve()


def test_envoy_reaches_both_homings_where_they_listen() -> None:
    _, port = split_endpoint(CONFIG.listen)
    assert CONFIG.envoy.pickers == tuple(f"{homing.address}:{port}" for homing in COMPOSE.homings)
    assert len(COMPOSE.homings) == 2


def test_the_homings_share_the_log_of_the_stacks_etcd() -> None:
    etcd = COMPOSE.services["etcd"]
    assert isinstance(CONFIG.log, EtcdLog)
    (endpoint,) = CONFIG.log.endpoints
    assert f"--advertise-client-urls=http://{endpoint}" in etcd.command
    assert endpoint.startswith(f"{etcd.address}:")
    assert all(homing.waits_for["etcd"] == "service_healthy" for homing in COMPOSE.homings)
    assert {str(homing.mounts) for homing in COMPOSE.homings} == {str(COMPOSE.homings[0].mounts)}


def test_published_ports_are_listened_on_and_reached_from_this_machine_only() -> None:
    jaeger_ui = 16686
    listening = {
        "envoy": {split_endpoint(a)[1] for a in (CONFIG.envoy.listen, CONFIG.envoy.admin or "")},
        "homing": {split_endpoint(CONFIG.admin or "")[1]},
        "homing-2": {split_endpoint(CONFIG.admin or "")[1]},
        "jaeger": {jaeger_ui},
    }
    published = {s.name: set(s.published.values()) for s in SERVICES if s.published}
    assert published == listening
    hosts = [entry for s in SERVICES for entry in s.fields.get("ports", ())]
    assert all(entry.startswith("127.0.0.1:") for entry in hosts)
    numbers = [port for s in SERVICES for port in s.published]
    assert len(set(numbers)) == len(numbers)


def test_health_checks_ask_a_port_that_is_listened_on() -> None:
    asked = {
        service.name: re.findall(r"127\.0\.0\.1[:/](\d+)", " ".join(service.healthcheck))
        for service in SERVICES
        if service.healthcheck
    }
    assert isinstance(CONFIG.log, EtcdLog)
    admins = {"envoy": CONFIG.envoy.admin, "etcd": CONFIG.log.endpoints[0]}
    admins |= {homing.name: CONFIG.admin for homing in COMPOSE.homings}
    listening = {name: [str(split_endpoint(admin or "")[1])] for name, admin in admins.items()}
    assert asked == listening | {e.name: [e.option("--port")] for e in COMPOSE.engines}


def test_spans_go_to_the_collector_and_from_there_to_jaeger() -> None:
    collector = yaml.safe_load((ROOT / "envoy" / "otel-collector.yaml").read_text())
    receiver = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert receiver.startswith("0.0.0.0:")
    assert CONFIG.tracing is not None
    assert CONFIG.tracing.otlp_endpoint == (
        f"http://{COMPOSE.services['otel-collector'].address}:{receiver.rpartition(':')[2]}"
    )
    assert collector["exporters"]["otlp"]["endpoint"].partition(":")[0] in COMPOSE.services
    pipeline = collector["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind]
        assert set(pipeline[kind]) == set(collector[kind])


def test_the_image_is_built_from_what_is_here() -> None:
    context = (ROOT / ".dockerignore").read_text().splitlines()
    for *sources, _ in build_steps("COPY"):
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in context
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(build_steps("ENTRYPOINT")) == [['["homing"]']]
    assert "homing" in project["scripts"]
    assert set(re.findall(r"\.\[(\w+)\]", DOCKERFILE.read_text())) <= set(
        project["optional-dependencies"]
    )
    (version,) = re.findall(r"FROM python:([\d.]+)-slim", DOCKERFILE.read_text())
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


# The same commands as local processes.


class Collector(TraceServiceServicer):
    """A receiver of OTLP in the collector's place."""

    def __init__(self) -> None:
        self.spans: asyncio.Queue[str] = asyncio.Queue()

    async def Export(  # noqa: N802 - gRPC's name
        self, request: ExportTraceServiceRequest, _: object
    ) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put_nowait(span.name)
        return ExportTraceServiceResponse()


@asynccontextmanager
async def collecting(service: Service) -> AsyncIterator[Collector]:
    collector = Collector()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    assert CONFIG.tracing is not None
    port = CONFIG.tracing.otlp_endpoint.rpartition(":")[2]
    server.add_insecure_port(f"{service.address.replace(NETWORK, LOOPBACK)}:{port}")
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


async def healthy(service: Service, root: Path) -> bool:
    """Whether the service's own check, run here, says so."""
    check = local_command(service.healthcheck, service, root)
    asked = await asyncio.create_subprocess_exec(*check, stderr=asyncio.subprocess.DEVNULL)
    return await asked.wait() == 0


@asynccontextmanager
async def running(service: Service, folder: Path) -> AsyncIterator[None]:
    """Run a service until the block ends; it begins when the service is healthy."""
    root = container(folder, service)
    command = local_command(service.command, service, root)
    with (folder / f"{service.name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30):
            while not await healthy(service, root):
                assert process.returncode is None, (folder / f"{service.name}.log").read_text()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def in_start_order() -> list[Service]:
    """The services that run here, each after those that it waits for."""
    ours = [s for s in SERVICES if s.command[:1] in (["homing"], ["envoy"], ["etcd"])]
    ordered: list[Service] = []
    while len(ordered) < len(ours):
        names = {service.name for service in ordered}
        ordered += [s for s in ours if s not in ordered and s.waits_for.keys() <= names]
    return ordered


async def test_the_same_commands_as_local_processes_bring_turns_home(tmp_path: Path) -> None:
    envoy = COMPOSE.services["envoy"].address.replace(NETWORK, LOOPBACK)
    _, port = split_endpoint(CONFIG.envoy.listen)
    messages = [{"role": "user", "content": "Tell me about the sea. " * 40}]
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting(COMPOSE.services["otel-collector"]))
        order = in_start_order()
        assert order[-1].name == "envoy"
        for service in order:
            await stack.enter_async_context(running(service, tmp_path))
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{envoy}:{port}"))
        served, cached, prompts = [], [], []
        for _ in range(4):
            body = {"model": "demo-model", "messages": messages, "max_tokens": 8}
            answer = await answered(http, body)
            served.append(answer.headers["x-served-by"])
            usage = (await answer.json())["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            prompts.append(usage["prompt_tokens"])
            messages += [
                (await answer.json())["choices"][0]["message"],
                {"role": "user", "content": "And then?"},
            ]
            await level(http)
        assert len(set(served)) == 1, served
        assert cached[0] == 0
        for before, now in zip(prompts, cached[1:], strict=False):
            assert now >= before // 16 * 16
        assert await asyncio.wait_for(collector.spans.get(), 30)


async def level(http: aiohttp.ClientSession) -> None:
    """Wait until all that was picked is in the log and both Homings have read it.

    The next turn may be either's. Equal is not enough: a record may still be on its way to etcd.
    """
    _, port = split_endpoint(CONFIG.admin or "")
    admins = [f"http://{s.address.replace(NETWORK, LOOPBACK)}:{port}" for s in COMPOSE.homings]
    async with asyncio.timeout(30):
        while True:
            waiting = [await unsettled(http, admin) for admin in admins]
            found = []
            for admin in admins:
                async with http.get(f"{admin}/pools/main/index") as answer:
                    found.append(await answer.json())
            if not any(waiting) and len({(one["revision"], one["digest"]) for one in found}) == 1:
                return
            await asyncio.sleep(0.01)


async def unsettled(http: aiohttp.ClientSession, admin: str) -> bool:
    """Whether a Homing has facts that have not come back from the log."""
    async with http.get(f"{admin}/metrics") as answer:
        text = await answer.text()
    (age,) = re.findall(r"^homing_log_behind_seconds{.*} (\S+)$", text, re.MULTILINE)
    return float(age) > 0


async def answered(http: aiohttp.ClientSession, body: dict[str, object]) -> aiohttp.ClientResponse:
    """The answer to one chat."""
    async with http.post("/v1/chat/completions", data=json.dumps(body)) as answer:
        await answer.read()
        assert answer.status == 200
        return answer
