"""Configurations for one Envoy on free ports."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from extproc.config import Config
from extproc.demo.engine import DEMO_TOKENIZER


def config(
    *pools: Sequence[str],
    pickers: Sequence[str] = (),
    listen: str = "127.0.0.1:9002",
    **envoy: Any,
) -> Config:
    """Pools of engines with these endpoints, each with a model that the demo's tokenizer serves."""
    return Config.model_validate(
        {
            "listen": listen,
            "pools": tuple(
                {
                    "name": f"pool-{number}",
                    "models": ({"name": f"model-{number}", "tokenizer": str(DEMO_TOKENIZER)},),
                    "instances": tuple({"endpoint": endpoint} for endpoint in endpoints),
                    "metrics": "off",
                }
                for number, endpoints in enumerate(pools)
            ),
            "envoy": {
                "listen": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "pickers": tuple(pickers),
                **envoy,
            },
        }
    )


@contextmanager
def dead_port() -> Iterator[str]:
    """An endpoint that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
