"""A real vLLM for the CPU in a virtual environment of its own: `python -m tests.vllm.install`.

It lies in `.cache/vllm`, which git ignores: 3.5 GB, made in about 80 seconds, and again when
`requirements.txt` or the Python changes.
"""

import ctypes
import fcntl
import shutil
import subprocess
import sys
import venv
from hashlib import sha256
from pathlib import Path

VERSION = "0.32.0"

TORCH = "torch==2.13.0+cpu"
"""The CPU's build: those on PyPI bring some gigabytes of CUDA."""

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where its wheels are, if not where pip looks already (a mirror, `PIP_FIND_LINKS`)."""

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
CACHE = Path(__file__).resolve().parents[2] / ".cache"


LEFT_OUT = 3
"""Exit status where vLLM cannot be on this machine: no fault of it or of ours."""


class Missing(Exception):
    """Something that no package on PyPI brings."""


def vllm_python() -> Path:
    """The Python that has vLLM, installed now if it is not there. Safe to call from many processes.

    Raises Missing where the machine lacks a library, or cannot reach torch's build for the CPU.
    """
    _check_libnuma()
    target = CACHE / "vllm"
    python, stamp = target / "bin" / "python", target / "installed"
    wanted = sha256(f"{sys.version}{TORCH}".encode() + REQUIREMENTS.read_bytes()).hexdigest()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(target, ignore_errors=True)
            _install(target, python)
            stamp.write_text(wanted)
    return python


def _install(target: Path, python: Path) -> None:
    venv.create(target, with_pip=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    if subprocess.run([*pip, TORCH], stderr=subprocess.DEVNULL).returncode:
        pip_there = [*pip, "--retries", "1", "--index-url", TORCH_INDEX, TORCH]
        if subprocess.run(pip_there, stderr=subprocess.DEVNULL).returncode:
            raise Missing(f"{TORCH} is not where pip looks, and {TORCH_INDEX} is not reached")
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)


def _check_libnuma() -> None:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise Missing("vLLM's CPU build needs libnuma.so.1: apt-get install libnuma1") from None


if __name__ == "__main__":
    try:
        print(vllm_python())
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(LEFT_OUT)
