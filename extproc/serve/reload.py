"""Takes over what changes on disk while the process serves: the configuration, the certificate.

A change is taken over once its files have rested for one look, so that a file is not read while it
is being written; SIGHUP takes over what is there at once. What cannot be used is refused as a
whole, logged and counted, and the old stays.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from extproc.config import Config, Pool, load_config
from extproc.errors import ConfigError
from extproc.files import LOOK_S, FileWatch
from extproc.serve.app import RELOADED, App

logger = logging.getLogger("homing.reload")


class Reloader:
    """Watches the files of an app. path: of its configuration."""

    def __init__(self, app: App, path: Path) -> None:
        self._app = app
        self._path = path
        self._asked = asyncio.Event()
        self._config = FileWatch([path])
        self._tls = FileWatch(app.tls.files if app.tls else ())

    def ask(self) -> None:
        """Reload soon, whether files have changed or not: for SIGHUP."""
        self._asked.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await asyncio.wait_for(self._asked.wait(), LOOK_S)
            except TimeoutError:
                await self.look()
            else:
                self._asked.clear()
                await self.reload()

    async def look(self) -> None:
        """Take over what has changed and rested since."""
        if await asyncio.to_thread(self._config.rested):
            await self._reload_config()
        if await asyncio.to_thread(self._tls.rested):
            await self._reload_tls()

    async def reload(self) -> None:
        """Take over what is there."""
        await asyncio.to_thread(self._config.take)
        await asyncio.to_thread(self._tls.take)
        await self._reload_config()
        await self._reload_tls()

    async def _reload_config(self) -> None:
        before = self._app.settings
        try:
            settings = await asyncio.to_thread(load_config, self._path)
            await self._app.take(settings)
        except ConfigError as error:
            self._refused("configuration", str(error))
            return
        except Exception as fault:  # a fault of ours: the old configuration serves
            self._app.metrics.errors.labels("reload").inc()
            self._refused("configuration", type(fault).__name__)
            return
        self._taken("configuration")
        for line in _differences(before.pools, settings.pools) or ["no pool has changed"]:
            logger.info("reloaded %s: %s", self._path, line)
        if fixed := _fixed(before, settings):
            names = ", ".join(fixed)
            logger.warning("%s: not taken over without a restart: %s", self._path, names)

    async def _reload_tls(self) -> None:
        tls = self._app.tls
        if tls is None:
            return
        try:
            changed = await asyncio.to_thread(tls.refresh)
        except ConfigError as error:
            self._refused("certificate", str(error))
            return
        if changed:
            self._taken("certificate")
            logger.info("the certificate of new connections ends on %s", tls.expires)

    def _taken(self, what: str) -> None:
        self._app.metrics.reloads.labels(what, "taken").inc()

    def _refused(self, what: str, findings: str) -> None:
        self._app.metrics.reloads.labels(what, "refused").inc()
        for line in findings.splitlines():
            logger.error("%s not reloaded, the old one stays: %s", what, line)


def _fixed(before: Config, after: Config) -> list[str]:
    """Keys that differ and cannot be taken over."""
    return [
        key
        for key in Config.model_fields
        if key not in RELOADED and getattr(before, key) != getattr(after, key)
    ]


def _differences(before: Sequence[Pool], after: Sequence[Pool]) -> list[str]:
    """What changed, a pool a line: by names and counts."""
    old, new = ({pool.name: pool for pool in pools} for pools in (before, after))
    lines = [f"pool {name} is gone" for name in old if name not in new]
    for name, pool in new.items():
        if name not in old:
            lines.append(f"pool {name} is new")
        elif pool != old[name]:
            lines.append(f"pool {name}: {', '.join(_changes(old[name], pool))}")
    return lines


def _changes(before: Pool, after: Pool) -> Iterator[str]:
    named: list[tuple[str, Callable[[Pool], set[str]]]] = [
        ("instance", lambda pool: {f"{one.id} at {one.endpoint}" for one in pool.instances}),
        ("model", lambda pool: {one.name for one in pool.models}),
    ]
    for what, names in named:
        yield from (f"+ {what} {name}" for name in sorted(names(after) - names(before)))
        yield from (f"- {what} {name}" for name in sorted(names(before) - names(after)))
    changed = [key for key in Pool.model_fields if getattr(before, key) != getattr(after, key)]
    yield f"changed {', '.join(changed)}"
