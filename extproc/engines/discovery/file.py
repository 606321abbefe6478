"""Discovery from a file that something else writes: a script, a controller, a config map."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from extproc.config import load_instances
from extproc.engines.discovery.entries import instance_of
from extproc.engines.discovery.interface import DiscoveryError
from extproc.engines.instances import Instance, State
from extproc.errors import ConfigError
from extproc.files import LOOK_S, FileWatch


class FileDiscovery:
    """Looks at the file every `look_s` and reads it once a change has rested for as long.

    scraped: whether the pool's engines have metrics.
    """

    def __init__(self, path: Path, scraped: bool, look_s: float = LOOK_S) -> None:
        self._path = path
        self._scraped = scraped
        self._look_s = look_s

    async def watch(self) -> AsyncGenerator[Sequence[Instance], None]:
        """As `Discovery.watch`."""
        watch = await asyncio.to_thread(FileWatch, [self._path])
        yield await asyncio.to_thread(self._read)
        while True:
            await asyncio.sleep(self._look_s)
            if await asyncio.to_thread(watch.rested):
                yield await asyncio.to_thread(self._read)

    def _read(self) -> Sequence[Instance]:
        try:
            entries = load_instances(self._path)
        except ConfigError as error:
            raise DiscoveryError(str(error)) from None
        return [instance_of(entry, self._scraped, State(entry.state)) for entry in entries]
