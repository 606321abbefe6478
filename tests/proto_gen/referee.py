"""`xds-protos` in a folder of its own: it brings an old copy of OpenTelemetry's messages along,
which would overwrite the installed ones."""

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.85.0"
CACHE = Path(__file__).resolve().parents[2] / ".cache"


def xds_protos() -> Path:
    """The folder to put on the path; installs it the first time, safe from several processes."""
    target = CACHE / f"xds-protos-{VERSION}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "xds-protos.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _install(Path(scratch) / "packages").rename(target)
    return target


def _install(into: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    package = f"xds-protos=={VERSION}"
    subprocess.run([*pip, "--target", str(into), package], check=True, timeout=100)
    return into
