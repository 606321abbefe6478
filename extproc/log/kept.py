"""The embedded log with a snapshot file: a process that starts again is as warm as it was.

Facts are folded at once, as in `MemoryLog`. The file is written on a timer and at the end, and read
at the start; one that cannot be used is left aside with a warning, and the process starts cold.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from extproc.errors import HomingError
from extproc.log.file import FileWriter, Section, read_file
from extproc.log.interface import Apply, BadSnapshot, Reload, Snapshots
from extproc.log.memory import MemoryLog

logger = logging.getLogger("homing.log")

BATCH_BYTES = 1 << 20
"""Pieces that are handed to the disk at a time."""

CLOSE_S = 10.0
"""Longest time to write the last snapshot; the one before it stays if that is not enough."""

Told: TypeAlias = Callable[[str, str], None]
"""A pool, and what became of its snapshot: `loaded`, `refused`, `written` or `failed`."""


class KeptLog(MemoryLog):
    """A `FactLog` whose subscribers' state outlives the process.

    What is appended before `open` has returned is folded then, after what the file has.
    told: see `Told`.
    """

    def __init__(self, path: Path, interval_s: float, told: Told = lambda _, __: None) -> None:
        super().__init__()
        self._path = path
        self._interval_s = interval_s
        self._told = told
        self._snapshots: dict[str, Snapshots] = {}
        self._secrets: dict[str, bytes] = {}
        self._opened = False
        self._saved: dict[str, int] = {}
        self._end = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self._folding = True  # until it is open

    def secret(self, pool: str) -> bytes | None:
        """The file's for this pool, else a new one; None until it is known which."""
        if pool not in self._secrets and self._opened:
            self._secrets[pool] = secrets.token_bytes(32)
        return self._secrets.get(pool)

    def warm(self, pool: str) -> bool:
        """Whether the file was read, if there was one."""
        return self._opened

    def subscribe(
        self,
        pool: str,
        apply: Apply,
        reload: Reload | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Give `apply` the pool's facts. Raises ValueError if it missed some already."""
        super().subscribe(pool, apply, reload, snapshots)
        if snapshots is not None:
            self._snapshots.setdefault(pool, snapshots)

    async def open(self) -> None:
        """Load the file, if it is there and right."""
        try:
            sections = await asyncio.to_thread(read_file, self._path)
        except (BadSnapshot, OSError) as error:
            sections = []
            self._refuse(self._snapshots, error)
        if sections is None:
            logger.info("%s is not there yet: a cold start", self._path)
        for section, pieces in sections or ():
            await self._load(section, pieces)
        self._opened = True
        self._folding = False
        self._fold()
        self._saving = asyncio.create_task(self._save_in_turn())

    async def close(self) -> None:
        """Refuse further facts, and write the file for the last time."""
        await super().close()
        self._end.set()
        if self._saving is None:
            return
        try:
            await asyncio.wait_for(self._saving, CLOSE_S)
        except TimeoutError:
            self._fail("not enough time")

    async def _load(self, section: Section, pieces: Sequence[bytes]) -> None:
        snapshots = self._snapshots.get(section.pool)
        if snapshots is None:
            logger.info("%s: pool %s is not served any more", self._path, section.pool)
            return
        self._secrets[section.pool] = section.secret
        try:
            for _ in snapshots.load(pieces):
                await asyncio.sleep(0)
        except BadSnapshot as error:
            del self._secrets[section.pool]
            self._refuse((section.pool,), error)
        else:
            self._told(section.pool, "loaded")
            logger.info("%s: pool %s is warm", self._path, section.pool)

    async def _save_in_turn(self) -> None:
        ending = False
        while not ending:
            try:
                await asyncio.wait_for(self._end.wait(), self._interval_s)
                ending = True
            except TimeoutError:
                pass
            if self._saved != self._folded:
                await self._save()

    async def _save(self) -> None:
        folded = dict(self._folded)
        try:
            with await asyncio.to_thread(FileWriter, self._path) as file:
                for pool, snapshots in self._snapshots.items():
                    section = Section(pool, self.secret(pool) or b"")
                    await asyncio.to_thread(file.section, section)
                    await self._write(file, snapshots.save())
                await asyncio.to_thread(file.commit)
        except (OSError, HomingError, ValueError) as error:
            self._fail(getattr(error, "strerror", None) or str(error))
            return
        self._saved = folded
        for pool in self._snapshots:
            self._told(pool, "written")

    async def _write(self, file: FileWriter, pieces: Iterator[bytes]) -> None:
        batch: list[bytes] = []
        for piece in pieces:
            if piece:
                batch.append(piece)
            if sum(map(len, batch)) >= BATCH_BYTES:
                await asyncio.to_thread(file.pieces, batch)
                batch = []
            await asyncio.sleep(0)
        await asyncio.to_thread(file.pieces, batch)

    def _refuse(self, pools: Iterable[str], error: Exception) -> None:
        for pool in pools:
            self._told(pool, "refused")
        what = getattr(error, "strerror", None) or error
        logger.warning("%s is not used, a cold start: %s", self._path, what)

    def _fail(self, what: str) -> None:
        for pool in self._snapshots:
            self._told(pool, "failed")
        logger.warning("%s could not be written, the old one stays: %s", self._path, what)
