"""A configured model, loaded as its engines use it."""

from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

from extproc.config import Model
from extproc.prompt import ServedModel


def load_model(model: Model) -> ServedModel:
    """Read the model's files; blocks for about a second. Raises ConfigError that names the file."""
    return ServedModel.load(
        model.name,
        model.tokenizer,
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
