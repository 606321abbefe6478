"""One pair of engines for all tests: they take half a minute to start, and 1.8 GB each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.stack import MODEL, VllmStack


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model that the engines serve."""
    return MODEL.write(tmp_path_factory.mktemp("models") / MODEL.name)


@pytest.fixture(scope="session")
def stack(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStack]:
    """Two engines with Homing and Envoy in front; each test leaves them running."""
    with VllmStack(model_folder, tmp_path_factory.mktemp("stack")) as stack:
        yield stack
