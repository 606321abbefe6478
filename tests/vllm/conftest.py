"""One pair of engines for all tests: they take half a minute to start, and 1.8 GB each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.stack import MODEL, VllmStack

REPORT = Path(__file__).parents[2] / "build" / "vllm-report.json"


@pytest.fixture(scope="session")
def report() -> Iterator[dict[str, Any]]:
    """What the tests measured; written at the end, whatever it says."""
    report: dict[str, Any] = {}
    yield report
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model that the engines serve."""
    return MODEL.write(tmp_path_factory.mktemp("models") / MODEL.name)


@pytest.fixture(scope="session")
def stack(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStack]:
    """Two engines with Homing and Envoy in front; each test leaves them running."""
    with VllmStack(model_folder, tmp_path_factory.mktemp("stack")) as stack:
        yield stack
