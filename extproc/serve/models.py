"""The loaded models: each read once, off the event loop, and kept while the files are the same."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from extproc import config
from extproc.errors import ConfigError
from extproc.loading import load_model
from extproc.prompt import ServedModel

Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time of the last change, size: others when a file is written or replaced."""


def stamp(file: Path) -> Stamp | None:
    """Of the file that a path leads to, through any links; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class _Files:
    """What a model is read from and how, and when that was changed."""

    model: config.Model
    """Without its other names, which change nothing of what is read."""
    stamps: tuple[tuple[Path, Stamp | None], ...]

    @classmethod
    def of(cls, model: config.Model) -> "_Files":
        listed = model.chat_template
        kinds = ("*.json", "*.jinja", "tokenizer.model*")
        files = [file for kind in kinds for file in model.tokenizer.glob(kind)]
        files += [listed] if listed is not None else []
        stamps = tuple((file, stamp(file)) for file in sorted(files))
        return cls(model.model_copy(update={"aliases": (), "adapters": ()}), stamps)


class Models:
    """What the pools of the configuration in force need, and nothing else."""

    def __init__(self) -> None:
        self._loaded: dict[_Files, ServedModel] = {}

    async def load(self, pools: Sequence[config.Pool]) -> Mapping[str, ServedModel]:
        """Model name → model, for all pools; reads what is new or changed on disk, one by one.

        About a second each, in a thread. Raises ConfigError where one cannot be read; what was
        loaded before stays then.
        """
        loaded: dict[_Files, ServedModel] = {}
        for field, model in _listed(pools):
            files = await asyncio.to_thread(_Files.of, model)
            if (known := self._loaded.get(files)) is not None:
                loaded[files] = known
                continue
            try:
                loaded[files] = await asyncio.to_thread(load_model, files.model)
            except ConfigError as error:
                raise ConfigError(f"{field}: {error}") from None
        self._loaded = loaded
        return {files.model.name: model for files, model in loaded.items()}


def _listed(pools: Sequence[config.Pool]) -> Iterator[tuple[str, config.Model]]:
    for p, pool in enumerate(pools):
        for m, model in enumerate(pool.models):
            yield f"pools[{p}].models[{m}]", model
