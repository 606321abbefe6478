"""Tokenizers from a hub: only their files, pinned, cached, and errors that say what is wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import extproc.demo
from extproc.config import HubFiles
from extproc.errors import ConfigError, ModelNotReady
from extproc.hub import cached, fetch, is_pinned
from tests.hub.server import COMMIT, LATER, Hub, serving

TOKENIZER = Path(extproc.demo.__file__).parent / "tokenizer"
NAME = "example/model-1"


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = files_of(TOKENIZER) | {"model.safetensors": b"weights", "README.md": b"read me"}
    with serving(Hub(NAME, {COMMIT: files, LATER: files | {"config.json": b"{}"}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def files(tmp_path: Path) -> HubFiles:
    return HubFiles(hub=NAME, cache=tmp_path)


def test_only_the_tokenizers_files_are_fetched(hub: Hub, files: HubFiles) -> None:
    folder = fetch(files)
    assert files_of(folder) == files_of(TOKENIZER)
    assert hub.fetched == set(files_of(TOKENIZER))


def test_what_was_fetched_is_read_without_the_network(hub: Hub, files: HubFiles) -> None:
    assert cached(files) is None
    assert hub.asked == []
    folder = fetch(files)
    asked = len(hub.asked)
    assert cached(files) == folder
    assert len(hub.asked) == asked


def test_branch_that_moved_is_fetched_anew(hub: Hub, files: HubFiles) -> None:
    folder = fetch(files)
    hub.heads["main"] = LATER
    assert cached(files) == folder
    later = fetch(files)
    assert set(files_of(later)) == {*files_of(folder), "config.json"}
    assert cached(files) == later


def test_commit_is_pinned(hub: Hub, files: HubFiles) -> None:
    pinned = files.model_copy(update={"revision": COMMIT})
    folder = fetch(pinned)
    hub.heads["main"] = LATER
    assert fetch(pinned) == cached(pinned) == folder
    assert is_pinned(pinned)
    assert not is_pinned(files)


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"hub": "example/none"}, "example/none at main: not on the hub for us"),
        ({"revision": "v9"}, f"{NAME} at v9: not on the hub for us"),
    ],
)
def test_what_is_not_on_the_hub_is_named(
    hub: Hub, files: HubFiles, update: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        fetch(files.model_copy(update=update))


@pytest.mark.parametrize("status", [403, 500, 503])
def test_hub_that_is_down_is_another_matter(hub: Hub, files: HubFiles, status: int) -> None:
    """Also where the files are cached: the caller asks whether there are newer ones."""
    fetch(files)
    hub.status = status
    with pytest.raises(ModelNotReady, match=f"the hub cannot be asked: HfHubHTTPError {status}"):
        fetch(files)
    assert cached(files) is not None


def test_hub_that_cannot_be_reached_is_too(
    files: HubFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Hub(NAME, {})) as gone:
        pass
    monkeypatch.setenv("HF_ENDPOINT", gone.endpoint)
    with pytest.raises(ModelNotReady, match="the hub cannot be asked: ConnectError"):
        fetch(files)


def test_files_that_are_half_there_are_not_used(hub: Hub, files: HubFiles) -> None:
    folder = fetch(files)
    (folder / "tokenizer.json").unlink()
    assert cached(files) is None
    assert fetch(files) == folder
    assert cached(files) == folder


def test_missing_extra_is_named(files: HubFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"a tokenizer on a hub needs homing\[hub\]"):
        cached(files)
