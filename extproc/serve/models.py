"""The loaded models: each read once, off the event loop, and kept while the files are the same."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from extproc import config, hub
from extproc.errors import ConfigError
from extproc.files import Stamp, stamp
from extproc.loading import load_model
from extproc.prompt import ServedModel
from extproc.serve.fetching import Fetching
from extproc.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class _Files:
    """What a model is read from and how, and when that was changed."""

    model: config.Model
    folder: Path
    stamps: tuple[tuple[Path, Stamp | None], ...]

    @classmethod
    def of(cls, model: config.Model, folder: Path) -> "_Files":
        listed = model.chat_template
        kinds = ("*.json", "*.jinja", "tokenizer.model*")
        files = [file for kind in kinds for file in folder.glob(kind)]
        files += [listed] if listed is not None else []
        return cls(model, folder, tuple((file, stamp(file)) for file in sorted(files)))


class Models:
    """What the pools of the configuration in force need, and nothing else.

    arrived: told of a model that came from a hub after `load` had answered, and its name.
    """

    def __init__(
        self,
        arrived: Callable[[str, ServedModel], None],
        metrics: Metrics,
    ) -> None:
        self._arrived = arrived
        self._fetching = Fetching(self._take, metrics)
        self._loaded: dict[_Files, ServedModel] = {}
        self._fetched: dict[config.Model, tuple[_Files, ServedModel]] = {}

    async def load(self, pools: Sequence[config.Pool]) -> Mapping[str, ServedModel]:
        """Model name → model, for all pools; reads what is new or changed on disk, one by one.

        About a second each, in a thread. A model that is on a hub and not in the cache is absent,
        and comes later. Raises ConfigError where one cannot be read; what was loaded before stays
        then.
        """
        loaded: dict[_Files, ServedModel] = {}
        on_hub: list[config.Model] = []
        to_fetch: list[config.Model] = []
        for field, model in _listed(pools):
            try:
                if not isinstance(model.tokenizer, config.HubFiles):
                    files, served = await self._read(model, model.tokenizer)
                    loaded[files] = served
                    continue
            except ConfigError as error:
                raise ConfigError(f"{field}: {error}") from None
            on_hub.append(model)
            cached = await self._read_cached(model, model.tokenizer)
            if cached is not None:
                loaded[cached[0]] = cached[1]
            if cached is None or not hub.is_pinned(model.tokenizer):
                to_fetch.append(model)
        # What came from a hub in the meantime is newer than what was cached.
        self._fetched = {model: self._fetched[model] for model in on_hub if model in self._fetched}
        loaded |= dict(self._fetched.values())
        self._loaded = loaded
        self._fetching.want(to_fetch)
        return {files.model.name: served for files, served in loaded.items()}

    def close(self) -> None:
        """Fetch nothing more."""
        self._fetching.want(())

    async def _read(self, model: config.Model, folder: Path) -> tuple[_Files, ServedModel]:
        files = await asyncio.to_thread(_Files.of, model, folder)
        served = self._loaded.get(files)
        if served is None:
            served = await asyncio.to_thread(load_model, model, folder)
        return files, served

    async def _read_cached(
        self, model: config.Model, on_hub: config.HubFiles
    ) -> tuple[_Files, ServedModel] | None:
        """None where the files are not in the cache, or of no use: they are fetched."""
        try:
            folder = await asyncio.to_thread(hub.cached, on_hub)
            return None if folder is None else await self._read(model, folder)
        except ConfigError:
            return None

    async def _take(self, model: config.Model, folder: Path) -> None:
        """A model's files have come."""
        self._fetched[model] = files, served = await self._read(model, folder)
        self._loaded[files] = served
        self._arrived(model.name, served)


def _listed(pools: Sequence[config.Pool]) -> Iterator[tuple[str, config.Model]]:
    """Each model without its other names, which change nothing of what is read."""
    for p, pool in enumerate(pools):
        for m, model in enumerate(pool.models):
            bare = model.model_copy(update={"aliases": (), "adapters": ()})
            yield f"pools[{p}].models[{m}]", bare
