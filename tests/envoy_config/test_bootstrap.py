from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config import Config
from extproc.envoy import bootstrap_yaml
from extproc.errors import ConfigError
from tests.envoy_config.configs import config
from tests.envoy_config.running import refusal

ENGINE = ("10.0.0.7:8000",)

ACCEPTED = {
    "the defaults": config(ENGINE),
    "full duplex": config(ENGINE, request_body_mode="FULL_DUPLEX_STREAMED"),
    "several pools": config(ENGINE, ("10.0.0.8:8000", "[fd00::9]:8000"), ENGINE),
    "several pickers": config(ENGINE, pickers=("127.0.0.1:9002", "unix:/run/1", "[::1]:9003")),
    "ipv6": config(("[fd00::9]:8000",), listen="[::]:9002", admin="[::1]:9901"),
    "unix sockets": config(
        ENGINE, listen="unix:/run/homing.sock", admin="unix:/run/admin.sock", pickers=()
    ),
    "no admin port": config(ENGINE, admin=None),
    "the smallest limits": config(
        ENGINE, buffer_limit_bytes=1, message_timeout_ms=1, idle_timeout_s=1
    ),
    "the largest limits": config(
        ENGINE, buffer_limit_bytes=2**30, message_timeout_ms=600_000, idle_timeout_s=86_400
    ),
}


def clusters(settings: Config) -> dict[str, list[Any]]:
    """The addresses of each cluster, as Envoy reads them."""
    read = yaml.safe_load(bootstrap_yaml(settings))["static_resources"]["clusters"]
    return {
        cluster["name"]: [
            next(iter(entry["endpoint"]["address"].values()))
            for locality in cluster["load_assignment"]["endpoints"]
            for entry in locality["lb_endpoints"]
        ]
        for cluster in read
    }


@pytest.mark.parametrize("settings", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_envoy_accepts_what_is_written(settings: Config, tmp_path: Path) -> None:
    assert refusal(bootstrap_yaml(settings), tmp_path) == ""


def test_envoy_refuses_what_is_wrong(tmp_path: Path) -> None:
    broken = bootstrap_yaml(config(ENGINE)).replace("override_host_sources", "sources")
    assert "sources" in refusal(broken, tmp_path)


@pytest.mark.parametrize(
    ("listen", "reached_at"),
    [
        ("10.0.0.2:9002", {"address": "10.0.0.2", "port_value": 9002}),
        ("0.0.0.0:9002", {"address": "127.0.0.1", "port_value": 9002}),
        ("[::]:9002", {"address": "::1", "port_value": 9002}),
        ("unix:/run/homing.sock", {"path": "/run/homing.sock"}),
    ],
)
def test_envoy_reaches_homing_where_it_listens(listen: str, reached_at: dict[str, Any]) -> None:
    assert clusters(config(ENGINE, listen=listen))["homing"] == [reached_at]


def test_each_process_of_homing_is_an_endpoint() -> None:
    settings = config(ENGINE, pickers=("10.0.0.2:9002", "10.0.0.2:9003"))
    assert [entry["port_value"] for entry in clusters(settings)["homing"]] == [9002, 9003]


def test_a_free_port_cannot_be_written_down() -> None:
    with pytest.raises(ConfigError, match=r"port 0.*envoy\.pickers"):
        bootstrap_yaml(config(ENGINE, listen="127.0.0.1:0"))


def test_an_engine_of_two_pools_is_one_host() -> None:
    settings = config(("10.0.0.7:8000", "10.0.0.8:8000"), ("10.0.0.8:8000", "10.0.0.9:8000"))
    assert [entry["address"] for entry in clusters(settings)["engines"]] == [
        "10.0.0.7",
        "10.0.0.8",
        "10.0.0.9",
    ]


@pytest.mark.parametrize(
    ("mode", "rewrites", "shown"),
    [
        ("BUFFERED", False, (None, "SKIP")),
        ("BUFFERED", True, (None, "SKIP")),
        ("FULL_DUPLEX_STREAMED", False, (None, "SEND")),
        ("FULL_DUPLEX_STREAMED", True, ("FULL_DUPLEX_STREAMED", "SEND")),
    ],
)
def test_answers_are_shown_unasked_only_where_homing_changes_them_and_cannot_ask(
    mode: str, rewrites: bool, shown: tuple[str | None, str]
) -> None:
    settings = config(ENGINE, request_body_mode=mode)
    (pool,) = settings.pools
    model = pool.models[0].model_copy(update={"aliases": ("a",), "rewrite_aliases": rewrites})
    pools = (pool.model_copy(update={"models": (model,)}),)
    written = yaml.safe_load(bootstrap_yaml(settings.model_copy(update={"pools": pools})))
    (chain,) = written["static_resources"]["listeners"][0]["filter_chains"]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    processing = filters[0]["typed_config"]["processing_mode"]
    modes = processing.get("response_body_mode"), processing["response_trailer_mode"]
    assert modes == shown
