"""The blocks of envoy/README.md, put into an Envoy that knew nothing of Homing."""

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from extproc.envoy import bootstrap_yaml
from tests.envoy_config.configs import config
from tests.envoy_config.pickers import homing
from tests.envoy_config.running import running_envoy, upstreams

PAGE = Path(__file__).parents[2] / "envoy" / "README.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
LISTENER, MANAGER, FILTER, PICKERS, ENGINES, ROUTE = map(yaml.safe_load, BLOCKS)

STRANGER = """
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {prefix: /}
                route: {cluster: engines}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: engines
    lb_policy: RANDOM
    load_assignment: {cluster_name: engines, endpoints: [{lb_endpoints: []}]}
"""  # noqa: E501 - Envoy's names are that long


def socket_address(endpoint: str) -> dict[str, Any]:
    ip, port = endpoint.split(":")
    return {"socket_address": {"address": ip, "port_value": int(port)}}


def parts(bootstrap: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The places that the page's blocks go to."""
    (listener,) = bootstrap["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    engines = bootstrap["static_resources"]["clusters"][-1]
    return {"listener": listener, "manager": manager, "route": route["route"], "engines": engines}


def with_homing(engines: list[str], picker: str) -> str:
    """The stranger's Envoy after somebody followed the page."""
    bootstrap = yaml.safe_load(STRANGER)
    places = parts(bootstrap)
    places["listener"].update(LISTENER)
    places["manager"].update(MANAGER)
    places["manager"]["http_filters"] = FILTER + places["manager"]["http_filters"]
    places["route"].update(ROUTE)
    del places["engines"]["lb_policy"]
    places["engines"].update(ENGINES)
    (locality,) = places["engines"]["load_assignment"]["endpoints"]
    locality["lb_endpoints"] = [
        {"endpoint": {"address": socket_address(engine)}} for engine in engines
    ]
    pickers = yaml.safe_load(yaml.safe_dump(PICKERS))
    (entry,) = pickers["load_assignment"]["endpoints"][0]["lb_endpoints"]
    entry["endpoint"]["address"] = socket_address(picker)
    bootstrap["static_resources"]["clusters"].insert(0, pickers)
    return yaml.safe_dump(bootstrap)


def test_the_pieces_are_those_of_envoy_config() -> None:
    written = bootstrap_yaml(config(["10.0.0.7:8000"], listen="127.0.0.1:9002"))
    # In protobuf's JSON a 64-bit number is a string, and a default is not written.
    written = re.sub(r"(attempts: )'(\d+)'", r"\1\2", written)
    written = re.sub(r"( +)(request_body_mode: .*\n)", r"\1\2\1response_body_mode: NONE\n", written)
    generated = yaml.safe_load(written)
    places = parts(generated)
    assert places["manager"]["http_filters"][0] == FILTER[0]
    assert generated["static_resources"]["clusters"][0] == PICKERS
    for place, block in (("listener", LISTENER), ("manager", MANAGER), ("route", ROUTE)):
        assert {key: places[place][key] for key in block} == block
    assert {key: places["engines"][key] for key in ENGINES} == ENGINES


async def test_an_envoy_that_followed_the_page_follows_picks(tmp_path: Path) -> None:
    async with upstreams("a", "b") as engines:
        endpoints = [engine.endpoint for engine in engines]
        served: dict[str, set[str]] = {}
        async with (
            homing(config(endpoints, listen="127.0.0.1:0")) as picker,
            running_envoy(with_homing(endpoints, picker), tmp_path) as envoy,
            aiohttp.ClientSession(envoy.url) as http,
        ):
            await envoy.until("cluster.homing.membership_healthy", 1)
            for number in range(12):
                topic = f"conversation {number % 4}"
                messages = [{"role": "user", "content": f"{topic}: " + "and so on " * 200}]
                body = json.dumps({"model": "model-0", "messages": messages})
                steering = {"x-gateway-destination-endpoint": endpoints[number % 2]}
                async with http.post("/v1/chat/completions", data=body, headers=steering) as answer:
                    assert answer.status == 200
                    served.setdefault(topic, set()).add((await answer.json())["served_by"])
    assert [len(names) for names in served.values()] == [1] * 4
    assert set().union(*served.values()) == {"a", "b"}
