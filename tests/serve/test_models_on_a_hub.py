"""A model whose tokenizer is on a hub: a start never waits for it, and it comes when it can."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc import hub as from_hub
from extproc.config import Config, HubFiles, Model
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.serve import App, fetching
from tests.hub.server import COMMIT, LATER, Hub, serving
from tests.serve.proxy import LONG, MODEL, ask, chat, config, sample

NAME = "example/model-1"
FILES = {file.name: file.read_bytes() for file in DEMO_TOKENIZER.iterdir()}
OTHER = FILES | {"chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(NAME, {COMMIT: FILES, LATER: OTHER})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(fetching, "FIRST_WAIT_S", 0.01)
        yield hub
        # Nobody waits for a fetch at the end of a process; here the next test would see its errors.
        hub.answering.set()
        for thread in threading.enumerate():
            if thread.name == "fetch":
                thread.join()


@pytest.fixture
def files(tmp_path: Path) -> HubFiles:
    return HubFiles(hub=NAME, cache=tmp_path)


def settings(files: HubFiles) -> Config:
    (pool,) = config().pools
    model = Model(name=MODEL, aliases=("alias",), tokenizer=files)
    return config(pools=(pool.model_copy(update={"models": (model,)}),))


@asynccontextmanager
async def started(files: HubFiles) -> AsyncIterator[tuple[App, grpc.aio.Channel]]:
    app = App(settings(files))
    port = await app.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield app, channel
    finally:
        await app.stop()


async def until(true: Callable[[], Any]) -> None:
    """Wait for it; the test's own time limit ends what never comes."""
    while not true():
        await asyncio.sleep(0.005)


def tried(app: App, result: str) -> float:
    return sample(app, "homing_reloads_total", what="model", result=result)


async def by_load(app: App, channel: grpc.aio.Channel, **more: Any) -> bool:
    """Whether a request for the model is routed by load, counted as not loaded."""
    labels = {"pool": "test", "why": "load", "reason": "model_loading"}
    before = sample(app, "homing_picks_total", **labels)
    exchange, _ = await ask(channel, chat(LONG, **more))
    await exchange.end()
    return sample(app, "homing_picks_total", **labels) == before + 1


async def test_model_comes_while_requests_are_routed_by_load(hub: Hub, files: HubFiles) -> None:
    hub.answering.clear()
    async with started(files) as (app, channel):
        assert app.ready
        assert await by_load(app, channel)
        hub.answering.set()
        await until(lambda: app.pools[0].models)
        assert not await by_load(app, channel)
        assert not await by_load(app, channel, model="alias")
        assert tried(app, "taken") == 1


async def test_hub_that_is_down_is_asked_again(
    hub: Hub, files: HubFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, counted each time."""
    hub.status = 503
    with caplog.at_level(logging.INFO):
        async with started(files) as (app, channel):
            await until(lambda: tried(app, "refused") >= 3)
            assert await by_load(app, channel)
            hub.status = 200
            await until(lambda: app.pools[0].models)
            assert not await by_load(app, channel)
    said = f"model {MODEL}: {NAME} at main: the hub cannot be asked: HfHubHTTPError 503"
    assert sum(line.startswith(said) for line in caplog.messages) == 1


async def test_what_is_not_on_the_hub_is_said_and_costs_no_start(
    hub: Hub, files: HubFiles, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = files.model_copy(update={"revision": "v9"})
    async with started(unknown) as (app, channel):
        await until(lambda: tried(app, "refused") >= 1)
        assert app.ready
        assert await by_load(app, channel)
    assert f"{NAME} at v9: not on the hub for us" in caplog.text


async def test_cached_model_serves_from_the_start_without_the_hub(
    hub: Hub, files: HubFiles
) -> None:
    from_hub.fetch(files)
    hub.status = 503
    async with started(files) as (app, channel):
        assert not await by_load(app, channel)


async def test_pinned_model_that_is_cached_asks_nothing(hub: Hub, files: HubFiles) -> None:
    pinned = files.model_copy(update={"revision": COMMIT})
    from_hub.fetch(pinned)
    hub.asked.clear()
    async with started(pinned) as (app, channel):
        assert not await by_load(app, channel)
        await app.take(app.settings)
        assert not await by_load(app, channel)
    assert hub.asked == []


async def test_branch_that_moved_replaces_the_cached_model(hub: Hub, files: HubFiles) -> None:
    from_hub.fetch(files)
    hub.heads["main"] = LATER
    hub.answering.clear()
    async with started(files) as (app, _):
        cached = app.pools[0].models[MODEL]
        hub.answering.set()
        await until(lambda: app.pools[0].models[MODEL] is not cached)
        later = app.pools[0].models[MODEL]
        await app.take(app.settings)
        assert app.pools[0].models[MODEL] is app.pools[0].models["alias"] is later


async def test_files_that_are_no_tokenizer_are_fetched_until_they_are(
    hub: Hub, files: HubFiles, caplog: pytest.LogCaptureFixture
) -> None:
    hub.commits = {COMMIT: {"tokenizer.json": b"{}"}, LATER: FILES}
    async with started(files) as (app, _):
        await until(lambda: tried(app, "refused") >= 1)
        assert "tokenizer.json: not a tokenizer.json" in caplog.text
        hub.heads["main"] = LATER
        await until(lambda: app.pools[0].models)


async def test_model_that_is_not_listed_any_more_is_not_fetched(hub: Hub, files: HubFiles) -> None:
    hub.answering.clear()
    async with started(files) as (app, _):
        await until(lambda: hub.asked)
        listed = app.settings
        await app.take(listed.model_copy(update={"pools": config().pools}))
        hub.answering.set()
        local = app.pools[0].models[MODEL]
        hub.asked.clear()
        await app.take(listed)  # again: it is fetched anew, and comes
        await until(lambda: app.pools[0].models.get(MODEL) not in (None, local))
        assert tried(app, "taken") == 1


async def test_hub_that_is_silent_holds_up_no_stop(hub: Hub, files: HubFiles) -> None:
    hub.answering.clear()
    async with started(files) as (app, _):
        await until(lambda: hub.asked)
    assert not app.pools[0].models
