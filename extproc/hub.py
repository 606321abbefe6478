"""Tokenizers on a hub of models: fetched once, then read from the cache.

With `huggingface_hub` (the extra `homing[hub]`), whose environment counts here too: `HF_ENDPOINT`,
`HF_TOKEN`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`. What blocks says so.
"""

import os
import re
from pathlib import Path
from typing import Any

from extproc.config import HubFiles
from extproc.errors import ConfigError, ModelNotReady

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "tekken.json",
    "tokenizer.model.v*",
)
"""What is fetched: nothing of a model's weights."""


_TIMEOUT_S = 10.0


def is_pinned(files: HubFiles) -> bool:
    """Whether the revision is a commit, which is never another one tomorrow."""
    return re.fullmatch(r"[0-9a-f]{40}", files.revision) is not None


def cached(files: HubFiles) -> Path | None:
    """The folder with the files, if they were fetched before; the network is not asked.

    Reads the disk. Raises ConfigError without the extra.
    """
    from_hub = _library()
    try:
        return _snapshot(from_hub, files, local_files_only=True)
    except from_hub.errors.LocalEntryNotFoundError:
        return None


def fetch(files: HubFiles) -> Path:
    """The folder with the files, as the hub has them now.

    Blocks for as long as the hub takes; 10 s of silence end it. Raises
    ConfigError where the hub has no such files for us, and ModelNotReady where it cannot be asked,
    even if older ones are cached.
    """
    from_hub = _library()
    errors = from_hub.errors
    named = f"{files.hub} at {files.revision}"
    try:
        # Asked first: `snapshot_download` gives what is cached where the hub is away, and sets no
        # limit to how long it is silent.
        api = from_hub.HfApi(endpoint=_endpoint(), library_name="homing")
        api.model_info(files.hub, revision=files.revision, timeout=_TIMEOUT_S)
        return _snapshot(from_hub, files, local_files_only=False)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ConfigError(f"{named}: not on the hub for us: {type(error).__name__}") from None
    except Exception as error:  # what its transports raise has no base of their own
        status = getattr(getattr(error, "response", None), "status_code", "")
        what = f"{type(error).__name__} {status}".strip()
        raise ModelNotReady(f"{named}: the hub cannot be asked: {what}") from None


def _snapshot(from_hub: Any, files: HubFiles, local_files_only: bool) -> Path:
    return Path(
        from_hub.snapshot_download(
            files.hub,
            revision=files.revision,
            cache_dir=files.cache,
            allow_patterns=list(FILES),
            local_files_only=local_files_only,
            endpoint=_endpoint(),
            library_name="homing",
        )
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            disable_progress_bars,
        )
    except ImportError:
        raise ConfigError("a tokenizer on a hub needs homing[hub]") from None
    disable_progress_bars()
    huggingface_hub.get_session().timeout = _TIMEOUT_S
    return huggingface_hub
