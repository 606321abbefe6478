"""Models whose files are on a hub: fetched beside the picks, tried again until they are here."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from extproc import config, hub
from extproc.errors import ConfigError, ModelNotReady
from extproc.telemetry import Metrics

logger = logging.getLogger("homing.models")

T = TypeVar("T")

FIRST_WAIT_S = 1.0
"""Before the second try; each wait is twice the one before."""

LONGEST_WAIT_S = 300.0


class Fetching:
    """Fetches models until each is here once.

    arrived: given a model and the folder with its files; a ConfigError of it is a failed try.
    """

    def __init__(
        self,
        arrived: Callable[[config.Model, Path], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._arrived = arrived
        self._metrics = metrics
        self._tasks: dict[config.Model, asyncio.Task[None]] = {}

    def want(self, models: Iterable[config.Model]) -> None:
        """Fetch these and no others; one that is on its way, or was here, is not fetched again."""
        wanted = set(models)
        for model in self._tasks.keys() - wanted:
            self._tasks.pop(model).cancel()
        for model in wanted - self._tasks.keys():
            self._tasks[model] = asyncio.create_task(self._fetch(model))

    async def _fetch(self, model: config.Model) -> None:
        files = model.tokenizer
        assert isinstance(files, config.HubFiles)
        wait = FIRST_WAIT_S
        said = ""
        while True:
            try:
                await self._arrived(model, await in_thread(partial(hub.fetch, files)))
            except (ConfigError, ModelNotReady) as error:
                self._metrics.reloads.labels("model", "refused").inc()
                if str(error) != said:
                    said = str(error)
                    logger.warning("model %s: %s; it is tried again", model.name, said)
            else:
                self._metrics.reloads.labels("model", "taken").inc()
                logger.info("model %s: fetched from the hub", model.name)
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)


async def in_thread(function: Callable[[], T]) -> T:
    """Run it in a thread of its own, which nobody waits for at the end of the process.

    The hub may be silent for long; the pool of `asyncio.to_thread` would hold up a shutdown.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # it belongs to the caller, not to this thread
            error = raised
        with suppress(RuntimeError):  # the loop has ended, and with it who waited
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return await done
