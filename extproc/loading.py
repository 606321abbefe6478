"""A configured model, loaded as its engines use it."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from extproc import hub
from extproc.config import HubFiles, Model
from extproc.prompt import ServedModel


def load_model(model: Model, folder: Path | None = None) -> ServedModel:
    """Read the model's files; blocks for about a second, and where they are on a hub for longer.

    folder: where they are; None for where the configuration says.

    Raises ConfigError that names the file, and ModelNotReady where the hub cannot be asked.
    """
    if folder is None:
        files = model.tokenizer
        folder = hub.fetch(files) if isinstance(files, HubFiles) else files
    return ServedModel.load(
        model.name,
        folder,
        model.chat_template,
        now=_clock(model.time_zone),
        trust_request_template=model.trust_request_template,
        mode=model.tokenizer_mode,
    )


def _clock(time_zone: str | None) -> Callable[[], datetime]:
    """The time on the engine's wall, without a zone, as `strftime_now` of a template sees it."""
    if time_zone is None:
        return datetime.now
    zone = ZoneInfo(time_zone)
    return lambda: datetime.now(zone).replace(tzinfo=None)
