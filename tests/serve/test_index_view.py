"""`homing index`: what operators see of the index, through the admin port."""

import asyncio
import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from extproc.cli import main
from extproc.demo.stack import _free_ports
from tests.serve.proxy import LONG, ask, chat, config, serving


async def homing(*arguments: str) -> tuple[int, str, str]:
    def run() -> tuple[int, str, str]:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = main(arguments)
        return status, out.getvalue(), err.getvalue()

    return await asyncio.to_thread(run)


async def test_the_index_is_shown_in_numbers_as_a_tree_and_as_json() -> None:
    (port,) = _free_ports(1)
    admin = f"http://127.0.0.1:{port}"
    async with serving(config(admin=f"127.0.0.1:{port}")) as (app, channel):
        exchange, name = await ask(channel, chat(LONG))
        await exchange.end()
        index = app.pools[0].index
        status, out, _ = await homing("index", "stat", "--admin", admin)
        numbers = json.loads(out)
        assert (status, numbers["held"]) == (0, index.stats().held)
        assert numbers["digest"] == f"{index.digest:016x}"
        status, out, _ = await homing("index", "dump", "--admin", admin, "--pool", "test")
        assert status == 0
        assert name in out
        status, out, _ = await homing("index", "dump", "--admin", admin, "--json")
        assert status == 0
        assert json.loads(out)
        status, _, err = await homing("index", "stat", "--admin", admin, "--pool", "nowhere")
        assert status == 2
        assert "no such pool" in err


async def test_a_homing_that_is_not_there_is_named() -> None:
    status, _, err = await homing("index", "stat", "--admin", "http://127.0.0.1:1")
    assert status == 2
    assert "http://127.0.0.1:1" in err
    status, _, err = await homing("index", "stat", "--admin", "127.0.0.1:1")
    assert "is no URL" in err
