"""The files of a model's directory that say how it chats."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from extproc.errors import ConfigError
from extproc.prompt.template import ChatTemplate
from extproc.prompt.types import Json

TokenizerMode: TypeAlias = Literal["auto", "hf", "mistral"]
"""Whose tokenizer it is: as the files say, Hugging Face's or Mistral's."""

_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_templates(
    directory: Path, given: Path | None = None, now: Callable[[], datetime] = datetime.now
) -> dict[str, ChatTemplate]:
    """The model's templates by name ("default", perhaps "tool_use"), as transformers finds them.

    given: a file to use instead. Raises ConfigError that names the file and what is wrong with it.
    """
    config = _read_object(directory / "tokenizer_config.json")
    tokens = _named_tokens(config)
    return {
        name: ChatTemplate(source, tokens, origin, now)
        for name, source, origin in _sources(directory, config, given)
    }


def is_gpt_oss(directory: Path) -> bool:
    """Whether vLLM renders the model's chats with harmony (renderers/online_renderer.py)."""
    return _read_object(directory / "config.json").get("model_type") == "gpt_oss"


def mistral_file(directory: Path, mode: TokenizerMode) -> Path | None:
    """The file of Mistral's own tokenizer; None where tokenizer.json is to be used.

    "auto": where there is one, and no tokenizer.json or weights in Mistral's own format beside it
    (vLLM 0.32.0, tokenizers/registry.py, `resolve_tokenizer_args`). Of several it is tekken.json,
    else the last by name (mistral-common, `get_one_valid_tokenizer_file`).

    Raises ConfigError where the mode asks for one and there is none.
    """
    if mode == "hf":
        return None
    found = sorted(directory.glob("tokenizer.model.v*"))
    tekken = directory / "tekken.json"
    file = tekken if tekken.exists() else found[-1] if found else None
    if mode == "mistral":
        plain = directory / "tokenizer.model"
        file = file or (plain if plain.exists() else None)
        if file is None:
            raise ConfigError(f"{directory}: has neither tekken.json nor tokenizer.model")
        return file
    has_weights = any(directory.glob("consolidated*.safetensors"))
    return None if (directory / "tokenizer.json").exists() and not has_weights else file


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: not a JSON object")
    return value


def _named_tokens(config: dict[str, Json]) -> dict[str, str]:
    """The tokens that a template may name; those that are null are undefined to it."""
    tokens = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _sources(
    directory: Path, config: dict[str, Json], given: Path | None
) -> Iterator[tuple[str, str, str]]:
    """(name, source, where from), in transformers' order: a given file, a file, the config."""
    file = given or directory / "chat_template.jinja"
    if given is not None or file.exists():
        try:
            yield "default", file.read_text("utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
        return
    origin = str(directory / "tokenizer_config.json")
    value = config.get("chat_template")
    if isinstance(value, str):
        yield "default", value, f"{origin}: chat_template"
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            match entry:
                case {"name": str(name), "template": str(source)}:
                    yield name, source, f"{origin}: chat_template[{i}]"
                case _:
                    raise ConfigError(f"{origin}: chat_template[{i}]: has no name and template")
    elif value is not None:
        raise ConfigError(f"{origin}: chat_template: neither a string nor a list")
