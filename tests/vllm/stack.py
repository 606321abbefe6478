"""Real vLLM behind Envoy and Homing: the demo's stack with other engines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from extproc.demo.engine import EngineSettings
from extproc.demo.stack import HOST, Stack
from tests.vllm.models import MODELS
from tests.vllm.servers import READY_S, command

MODEL = MODELS["qwen3"]
BLOCK_SIZE = 32
BLOCKS = 400
"""Of each engine, one of them reserved: 12,768 tokens, so that conversations push out others."""

MAX_MODEL_LEN = 8192

SERVED = "x-served-by"
"""Envoy says who answered: vLLM does not."""

PATIENT = {"limits": {"pick_timeout_ms": 20_000}}
"""A busy machine must not turn a pick into a time-out."""


def like_vllm(model: Path, **settings: Any) -> EngineSettings:
    """The simulated engine with the cache that the real ones have here."""
    return EngineSettings(
        model=MODEL.name,
        tokenizer=model,
        block_size=BLOCK_SIZE,
        blocks=BLOCKS,
        max_model_len=MAX_MODEL_LEN,
        **settings,
    )


class VllmStack(Stack):
    """Two engines. model: the folder of MODEL."""

    ready_s = READY_S

    def __init__(self, model: Path, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(
            2,
            engine=like_vllm(model),
            kv_events=True,
            config={**PATIENT, **(config or {})},
            envoy={"message_timeout_ms": 30_000},
            folder=folder,
        )

    def _engine_command(self, settings: EngineSettings) -> list[str]:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            # It binds wildcards only: where an address is given it connects.
            "endpoint": f"tcp://*:{settings.kv_events_port}",
            "replay_endpoint": f"tcp://{HOST}:{settings.kv_events_replay_port}",
            "topic": "kv-events",
        }
        options = {
            "load_format": "dummy",
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": 16,
            "block_size": settings.block_size,
            "num_gpu_blocks_override": settings.blocks,
            "kv_cache_memory_bytes": 1 << 29,
            "enable_prefix_caching": True,
            "enable_prompt_tokens_details": True,
            "kv_events_config": events,
        }
        module = "vllm.entrypoints.openai.api_server"
        return command(module, MODEL, settings.tokenizer, settings.port, options)

    def _write_envoy_config(self) -> None:
        super()._write_envoy_config()
        yaml = YAML(typ="safe")
        bootstrap = yaml.load(self._envoy_file.read_text())
        (chain,) = bootstrap["static_resources"]["listeners"][0]["filter_chains"]
        routes = chain["filters"][0]["typed_config"]["route_config"]
        served = {"key": SERVED, "value": "%UPSTREAM_REMOTE_ADDRESS%"}
        routes["response_headers_to_add"] = [{"header": served}]
        with self._envoy_file.open("w") as file:
            yaml.dump(bootstrap, file)
