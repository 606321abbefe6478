"""Scores where operators see them: in what Envoy writes of a request."""

import asyncio

import aiohttp
from ruamel.yaml import YAML

from extproc.demo.stack import ENVOY
from tests.e2e.client import post
from tests.e2e.conftest import quick_stack

TOLD = "%DYNAMIC_METADATA(envoy.lb:x-gateway-destination-endpoint-scores)%"


async def test_envoy_can_write_the_score_of_every_endpoint(http: aiohttp.ClientSession) -> None:
    with quick_stack("BUFFERED", scores=True) as stack:
        yaml = YAML(typ="safe")
        file = stack.folder / "envoy.yaml"
        bootstrap = yaml.load(file.read_text())
        (filters,) = bootstrap["static_resources"]["listeners"][0]["filter_chains"]
        manager = filters["filters"][0]["typed_config"]
        manager["route_config"]["response_headers_to_add"] = [
            {"header": {"key": "x-told", "value": TOLD}}
        ]
        stack.kill(ENVOY)
        with file.open("w") as written:
            yaml.dump(bootstrap, written)
        await asyncio.to_thread(stack.start, ENVOY)
        body = {"model": stack.model, "messages": [], "max_tokens": 1}
        answer = await post(http, f"{stack.url}/v1/chat/completions", body)
        costs = dict(one.split("=") for one in answer.headers["x-told"].split(","))
        ports = {f"127.0.0.1:{engine.port}": name for name, engine in stack.engines.items()}
        assert costs.keys() == ports.keys()
        assert ports[min(costs, key=lambda endpoint: float(costs[endpoint]))] == answer.served
