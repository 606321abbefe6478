"""`homing serve`: one app, from its start to its drain, and what signals ask of it.

SIGTERM, SIGINT: drain, then end; once more: end at once. SIGHUP: reload.
"""

import asyncio
import gc
import signal
from pathlib import Path

import uvloop

from extproc import config, telemetry
from extproc.errors import ConfigError
from extproc.serve.app import App
from extproc.serve.reload import Reloader


def run(settings: config.Config, path: Path) -> None:
    """Serve until SIGTERM or SIGINT. path: of the configuration, which is read again on SIGHUP.

    Raises ConfigError where an address cannot be bound or a model's files are wrong.
    """
    telemetry.configure()
    try:
        uvloop.run(_serve(settings, path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


async def _serve(settings: config.Config, path: Path) -> None:
    app = App(settings)
    reloader = Reloader(app, path)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    work = asyncio.ensure_future(_work(app, reloader))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # raises: it ends in no other way
        work.cancel()
        await app.drain(hurry)
    finally:
        stopping.cancel()
        await app.stop()


async def _work(app: App, reloader: Reloader) -> None:
    await app.start()
    # What is there now stays: the collector need not look at it again, on Python 3.14 least of all,
    # where it would look at every dict of an index that was loaded (docs/index.md).
    gc.collect()
    gc.freeze()
    await reloader.run()
