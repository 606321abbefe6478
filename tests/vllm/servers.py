"""vLLM's servers as processes: engines, and renderers, which only tell the tokens of a prompt."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from extproc.demo.processes import Process, stop
from extproc.demo.stack import HOST, _free_ports
from tests.vllm.install import vllm_python
from tests.vllm.models import TinyModel

READY_S = 300.0
GRACE_S = 5.0

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines bound to the same core wait for each other
    "OMP_NUM_THREADS": "1",
}


def command(
    module: str, model: TinyModel, folder: Path, port: int, options: Mapping[str, Any]
) -> list[str]:
    """A server's command line. options: as vLLM names them; a flag is true."""
    given: dict[str, Any] = {
        "model": folder,
        "served_model_name": model.name,
        "host": HOST,
        "port": port,
        "enable_auto_tool_choice": True,
        **model.options,
        **options,
    }
    words = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
    words += [str(vllm_python()), "-m", module]
    for name, value in given.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


@contextmanager
def renderer(model: TinyModel, folder: Path) -> Iterator[str]:
    """A server that renders and tokenizes as an engine does, and is none; gives its URL."""
    module = "vllm.entrypoints.launchers.render.entry"
    (port,) = _free_ports(1)
    url = f"http://{HOST}:{port}"
    words = command(module, model, folder, port, {})
    process = Process("renderer", words, folder / "renderer.log", f"{url}/health")
    try:
        process.start()
        process.wait_ready(time.monotonic() + READY_S)
        yield url
    finally:
        stop([process], GRACE_S)
