"""Envoy finds the engines that Homing has discovered: real Envoy, real DNS, a real file."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from extproc.config import Config
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.engines.endpoints_file import write_endpoints
from extproc.envoy import bootstrap_yaml
from extproc.errors import ConfigError
from extproc.terms import Endpoint
from tests.engines.nameserver import nameserver
from tests.envoy_config.pickers import homing
from tests.envoy_config.running import Envoy, refusal, running_envoy

FREE = "127.0.0.1:0"


def config(discovery: dict[str, Any], pickers: tuple[str, ...] = (), **more: Any) -> Config:
    """One pool whose engines are found."""
    return Config.model_validate(
        {
            "listen": FREE,
            "pools": (
                {
                    "name": "main",
                    "models": ({"name": "m", "tokenizer": str(DEMO_TOKENIZER)},),
                    "discovery": discovery,
                    "metrics": "off",
                },
            ),
            "envoy": {"listen": FREE, "admin": FREE, "pickers": pickers},
            **more,
        }
    )


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say who answers, and whom Homing picked."""
    own = "{}:{}".format(*writer.get_extra_info("sockname"))
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
            order = lines.get("x-gateway-destination-endpoint", "")
            body = json.dumps({"served": own, "picked": order.split(",")[0]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    except asyncio.IncompleteReadError:
        writer.close()


@asynccontextmanager
async def engines(*addresses: str) -> AsyncIterator[int]:
    """An engine at each address, all at one port."""
    first = await asyncio.start_server(_serve, addresses[0], 0)
    port = first.sockets[0].getsockname()[1]
    others = [await asyncio.start_server(_serve, one, port) for one in addresses[1:]]
    try:
        yield port
    finally:
        for server in (first, *others):
            server.close()


async def served(envoy: Envoy, count: int = 12) -> set[str]:
    """Who answered, where each was the one that Homing picked."""
    seen = set()
    async with aiohttp.ClientSession(envoy.url) as http:
        for _ in range(count):
            async with http.get("/v1/models") as answer:
                told = await answer.json(content_type=None)
                if told["served"] == told["picked"]:
                    seen.add(told["served"])
    return seen


async def until_served_by(envoy: Envoy, wanted: set[str]) -> None:
    async with asyncio.timeout(60):
        while await served(envoy) != wanted:
            await asyncio.sleep(0.05)


async def test_engines_found_by_dns_are_found_by_envoy_too(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        names = await stack.enter_async_context(nameserver())
        port = await stack.enter_async_context(engines("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        found = {
            "kind": "dns",
            "name": "engines.example",
            "port": port,
            "every_s": 0.1,
            "linger_s": 0,
            "nameservers": (names.endpoint,),
        }
        names.records["engines.example", "A"] = ["127.0.0.1", "127.0.0.2"]
        picker = await stack.enter_async_context(homing(config(found)))
        bootstrap = bootstrap_yaml(config(found, (picker,)))
        envoy = await stack.enter_async_context(running_envoy(bootstrap, tmp_path))
        await until_served_by(envoy, {f"127.0.0.1:{port}", f"127.0.0.2:{port}"})
        names.records["engines.example", "A"] = ["127.0.0.3", "127.0.0.2"]
        await until_served_by(envoy, {f"127.0.0.3:{port}", f"127.0.0.2:{port}"})


async def test_engines_in_a_file_are_found_by_envoy_in_the_file_that_homing_writes(
    tmp_path: Path,
) -> None:
    def listed(*addresses: str) -> None:
        entries = [{"endpoint": f"{address}:{port}"} for address in addresses]
        new = tmp_path / "new"
        new.write_text(json.dumps({"instances": entries}))
        new.rename(tmp_path / "engines.json")

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(engines("127.0.0.1", "127.0.0.2"))
        listed("127.0.0.1")
        found = {"kind": "file", "path": str(tmp_path / "engines.json")}
        written = tmp_path / "endpoints.json"
        settings = config(found, endpoints_file=str(written))
        picker = await stack.enter_async_context(homing(settings))
        bootstrap = bootstrap_yaml(config(found, (picker,), endpoints_file=str(written)))
        envoy = await stack.enter_async_context(running_envoy(bootstrap, tmp_path))
        await until_served_by(envoy, {f"127.0.0.1:{port}"})
        listed("127.0.0.1", "127.0.0.2")
        await until_served_by(envoy, {f"127.0.0.1:{port}", f"127.0.0.2:{port}"})
        listed("127.0.0.2")
        await until_served_by(envoy, {f"127.0.0.2:{port}"})


@pytest.mark.parametrize("records", ["A", "AAAA"])
def test_envoy_accepts_a_cluster_of_names(records: str, tmp_path: Path) -> None:
    found = {"kind": "dns", "name": "engines.example", "port": 8000, "records": records}
    assert refusal(bootstrap_yaml(config(found, ("127.0.0.1:9002",))), tmp_path) == ""


@pytest.mark.parametrize(
    "found",
    [
        {"kind": "dns", "name": "engines.example", "records": "SRV"},
        {"kind": "file", "path": "engines.yaml"},
        {"kind": "kubernetes", "pool": "llm"},
        {"kind": "etcd"},
    ],
    ids=lambda found: found["kind"],
)
def test_engines_that_envoy_could_not_find_are_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"pools\[0\].discovery: .*endpoints_file"):
        bootstrap_yaml(config(found, ("127.0.0.1:9002",)))


def test_the_file_is_replaced_only_where_it_says_something_else(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    write_endpoints(file, [Endpoint("10.0.0.2:1"), Endpoint("[::1]:2"), Endpoint("10.0.0.2:1")])
    first = file.stat().st_ino
    write_endpoints(file, [Endpoint("[::1]:2"), Endpoint("10.0.0.2:1")])
    assert file.stat().st_ino == first
    write_endpoints(file, [])
    assert file.stat().st_ino != first
    assert [one.name for one in tmp_path.iterdir()] == ["endpoints.json"]
