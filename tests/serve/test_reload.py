"""What a running Homing takes over from its configuration file, and what it refuses."""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.config import load_config
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.serve import App
from extproc.serve.reload import Reloader
from extproc.terms import InstanceId
from tests.serve.proxy import ENDPOINTS, LONG, MODEL, ask, chat, sample

TAKEN = {"what": "configuration", "result": "taken"}
REFUSED = {"what": "configuration", "result": "refused"}


class File:
    """A configuration file with one pool: written, changed, replaced."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "homing.yaml"
        shutil.copytree(DEMO_TOKENIZER, folder / "tok")
        self.data: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "explain": True,
            "limits": {"pick_timeout_ms": 20_000},
            "envoy": {"message_timeout_ms": 30_000},
            "pools": [pool("test", MODEL, ["a", "b", "c"])],
        }
        self.write()

    def write(self, **changes: Any) -> None:
        """Replace the file, as careful editors do."""
        self.data |= changes
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.data))
        new.rename(self.path)


def pool(name: str, model: str, instances: list[str], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "models": [{"name": model, "aliases": [f"{model}-alias"], "tokenizer": "tok"}],
        "instances": [{"name": one, "endpoint": ENDPOINTS[one]} for one in instances],
        "metrics": "off",
        **more,
    }


@asynccontextmanager
async def serving(file: File) -> AsyncIterator[tuple[App, Reloader, grpc.aio.Channel]]:
    """A ready Homing, its reloader, which looks when it is told to, and a channel."""
    app = App(load_config(file.path))
    port = await app.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield app, Reloader(app, file.path), channel
    finally:
        await app.stop()


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)


def blocks(app: App, name: str) -> int:
    return app.pools[0].index.held_blocks(InstanceId(name))


async def served(channel: grpc.aio.Channel, body: bytes) -> str:
    """Who is picked."""
    exchange, name = await ask(channel, body)
    await exchange.answer(200)
    await exchange.end()
    return name


async def reason(channel: grpc.aio.Channel, body: bytes) -> str:
    """How a request is placed, in the words of the header `x-homing-why`."""
    exchange, _ = await ask(channel, body)
    reply = await exchange.answer(200)
    await exchange.end()
    headers = reply.response_headers.response.header_mutation.set_headers
    return {one.header.key: one.header.raw_value.decode() for one in headers}["x-homing-why"]


async def test_an_instance_that_leaves_is_not_picked_and_those_that_stay_stay_warm(
    file: File,
) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        other, gone = (one for one in ENDPOINTS if one != home)
        held = blocks(app, home)
        assert held > 20
        file.write(pools=[pool("test", MODEL, [home, other])])
        await reloader.reload()
        assert blocks(app, home) == held
        assert await served(channel, chat(LONG)) == home
        picked = {await served(channel, chat(f"{n} {LONG}")) for n in range(8)}
        assert picked == {home, other}
        assert gone not in picked
        assert sample(app, "homing_reloads_total", **TAKEN) == 1


async def test_an_instance_that_joins_is_picked(file: File) -> None:
    file.write(pools=[pool("test", MODEL, ["a"])])
    async with serving(file) as (_, reloader, channel):
        assert await served(channel, chat(LONG)) == "a"
        file.write(pools=[pool("test", MODEL, ["a", "b"])])
        await reloader.reload()
        first, one = await ask(channel, chat("one"))
        second, other = await ask(channel, chat("two"))
        assert {one, other} == {"a", "b"}
        await first.end()
        await second.end()


async def test_an_instance_that_comes_back_is_cold(file: File) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        file.write(pools=[pool("test", MODEL, [one for one in ENDPOINTS if one != home])])
        await reloader.reload()
        file.write(pools=[pool("test", MODEL, list(ENDPOINTS))])
        await reloader.reload()
        assert blocks(app, home) == 0


async def test_the_same_name_at_another_endpoint_is_another_instance(file: File) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        moved = pool("test", MODEL, list(ENDPOINTS))
        for one in moved["instances"]:
            if one["name"] == home:
                one["endpoint"] = "10.0.0.9:8000"
        file.write(pools=[moved])
        await reloader.reload()
        assert blocks(app, home) == 0


async def test_blocks_of_another_size_begin_anew(file: File) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        before = blocks(app, home)
        file.write(pools=[pool("test", MODEL, list(ENDPOINTS), block_size=32)])
        await reloader.reload()
        assert sum(blocks(app, one) for one in ENDPOINTS) == 0
        home = await served(channel, chat(LONG))
        assert blocks(app, home) == before // 2
        assert await served(channel, chat(LONG)) == home


async def test_a_smaller_capacity_holds_from_the_reload_on(file: File) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        assert blocks(app, home) > 20
        file.write(pools=[pool("test", MODEL, list(ENDPOINTS), capacity_blocks=20)])
        await reloader.reload()
        assert blocks(app, home) == 20


async def test_open_requests_go_on_and_their_load_ends_with_them(file: File) -> None:
    async with serving(file) as (app, reloader, channel):
        exchange, name = await ask(channel, chat(LONG))
        staying = [one for one in ENDPOINTS if one != name]
        file.write(pools=[pool("test", MODEL, staying)])
        await reloader.reload()
        assert app.processor.open_streams == 1
        file.write(pools=[pool("test", MODEL, list(ENDPOINTS))])
        await reloader.reload()
        assert app.pools[0].load.in_flight == 1
        await exchange.answer(500)
        await exchange.end()
        assert app.pools[0].load.in_flight == 0
        assert blocks(app, name) == 0
        assert sample(app, "homing_internal_errors_total", where="encode") == 0


async def test_a_pool_can_come_and_go_and_come_back_cold(file: File) -> None:
    both = [pool("test", MODEL, ["a"]), pool("more", "second", ["b"])]
    async with serving(file) as (app, reloader, channel):
        second = chat(LONG, model="second")
        assert await reason(channel, second) == "load (unknown_model)"
        for _ in range(2):
            file.write(pools=both)
            await reloader.reload()
            assert (await reason(channel, second)).startswith("new;")
            assert (await reason(channel, second)).startswith("home;")
            file.write(pools=both[:1])
            await reloader.reload()
            assert await reason(channel, second) == "load (unknown_model)"
        assert [each.name for each in app.pools] == ["test"]
        assert sample(app, "homing_reloads_total", **TAKEN) == 4


async def test_a_model_is_read_again_only_where_its_files_have_changed(
    file: File, tmp_path: Path
) -> None:
    async with serving(file) as (app, reloader, _):
        before = dict(app.pools[0].models)
        file.write(pools=[pool("test", MODEL, ["a"])])
        await reloader.reload()
        assert app.pools[0].models == before
        settings = tmp_path / "tok" / "tokenizer_config.json"
        settings.write_text(settings.read_text() + "\n")
        await reloader.reload()
        assert app.pools[0].models.keys() == before.keys()
        assert app.pools[0].models[MODEL] is not before[MODEL]


async def test_a_new_name_of_a_model_is_served(file: File) -> None:
    async with serving(file) as (_, reloader, channel):
        home = await served(channel, chat(LONG))
        changed = pool("test", MODEL, list(ENDPOINTS))
        changed["models"][0]["aliases"] = ["renamed"]
        file.write(pools=[changed])
        await reloader.reload()
        assert await served(channel, chat(LONG, model="renamed")) == home
        assert await reason(channel, chat(LONG, model=f"{MODEL}-alias")) == "load (unknown_model)"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("pools: []", "homing.yaml:1: pools: must not be empty"),
        ("pools: [", "homing.yaml:1: "),
        (None, "homing.yaml: cannot be read: No such file or directory"),
    ],
    ids=["wrong", "unreadable", "gone"],
)
async def test_a_broken_file_is_said_once_and_counted_and_the_old_configuration_stays(
    file: File, caplog: pytest.LogCaptureFixture, broken: str | None, said: str
) -> None:
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        if broken is None:
            file.path.unlink()
        else:
            file.path.write_text(broken)
        for _ in range(4):
            await reloader.look()
        errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1, errors
        assert said in errors[0]
        assert sample(app, "homing_reloads_total", **REFUSED) == 1
        assert await served(channel, chat(LONG)) == home
        file.write(pools=[pool("test", MODEL, [home])])
        await reloader.look()
        await reloader.look()
        assert sample(app, "homing_reloads_total", **TAKEN) == 1
        assert await served(channel, chat("something else")) == home


async def test_a_model_that_cannot_be_loaded_refuses_the_whole_file(
    file: File, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    bad = pool("more", "second", ["b"])
    bad["models"][0]["tokenizer"] = "bad"
    async with serving(file) as (app, reloader, channel):
        home = await served(channel, chat(LONG))
        file.write(pools=[pool("test", MODEL, [one for one in ENDPOINTS if one != home]), bad])
        await reloader.reload()
        assert sample(app, "homing_reloads_total", **REFUSED) == 1
        assert "the old one stays: pools[1].models[0]: " in caplog.text
        assert [each.name for each in app.pools] == ["test"]
        assert await served(channel, chat(LONG)) == home


async def test_what_needs_a_restart_is_named_and_the_rest_taken_over(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(file) as (app, reloader, channel):
        file.write(
            listen="127.0.0.1:1",
            tls="self-signed",
            drain={"delay_s": 1},
            pools=[pool("test", MODEL, ["a"], prefill_rate=5000)],
        )
        await reloader.reload()
        (fixed,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert fixed.getMessage().endswith("not taken over without a restart: listen, tls")
        assert "pool test: - instance b at 10.0.0.2:8000, - instance c at 10.0.0.3:8000" in (
            caplog.text
        )
        assert "prefill_rate" in caplog.text
        assert app.settings.drain.delay_s == 1
        assert app.settings.listen == "127.0.0.1:0"
        assert await served(channel, chat(LONG)) == "a"


async def test_a_change_is_found_without_a_signal(file: File) -> None:
    async with serving(file) as (_, reloader, channel):
        looking = asyncio.create_task(reloader.run())
        file.write(pools=[pool("test", MODEL, ["c"])])
        async with asyncio.timeout(30):
            while {await served(channel, chat(f"{n}")) for n in range(3)} != {"c"}:
                await asyncio.sleep(0.05)
        looking.cancel()


async def test_old_models_serve_until_the_new_ones_are_loaded(file: File) -> None:
    async with serving(file) as (_, reloader, channel):
        home = await served(channel, chat(LONG))
        file.write(pools=[pool("test", MODEL, list(ENDPOINTS)), pool("more", "second", ["b"])])
        reloading = asyncio.create_task(reloader.reload())
        why = []
        while not reloading.done():
            why.append(await reason(channel, chat(LONG)))
        assert why
        assert all(each.startswith("home;") for each in why)
        assert await served(channel, chat(LONG)) == home
