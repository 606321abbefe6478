"""A served model: its tokenizer and chat template together, from prompt to block keys."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.blocks import block_keys
from extproc.prompt.normalise import normalise_messages, normalise_tools
from extproc.prompt.template import ChatTemplate
from extproc.prompt.tokenizer import Tokenizer
from extproc.prompt.types import Chain, Chat, Json, Prompt
from extproc.stages import Stages
from extproc.terms import TOKEN_BYTES, BlockKey, TokenIds

_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class ServedModel:
    """One model as its engines see it. Thread-safe; made by `load`."""

    def __init__(self, name: str, tokenizer: Tokenizer, templates: dict[str, ChatTemplate]) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._templates = templates

    @classmethod
    def load(cls, name: str, tokenizer: Path, chat_template: Path | None = None) -> "ServedModel":
        """Read the model's files; blocks for about a second.

        tokenizer: a directory with tokenizer.json, and beside it tokenizer_config.json and
            chat_template.jinja where there are any.
        chat_template: a file that takes the place of the model's own.

        Raises ConfigError that names the file and what is wrong with it.
        """
        if not tokenizer.is_dir():
            raise ConfigError(f"{tokenizer}: not a directory")
        config = _read_object(tokenizer / "tokenizer_config.json")
        tokens = _named_tokens(config)
        templates = {
            key: ChatTemplate(source, tokens, origin)
            for key, source, origin in _template_sources(tokenizer, config, chat_template)
        }
        return cls(name, Tokenizer(tokenizer / "tokenizer.json"), templates)

    def render(self, chat: Chat) -> str:
        """The text of a chat's prompt. Raises Unroutable where there is no template or it fails."""
        tools = normalise_tools(chat.tools)
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise Unroutable("no_chat_template")
        return template.render(normalise_messages(chat.messages), tools, chat.options)

    def token_ids(self, prompt: Prompt, stages: Stages | None = None) -> tuple[TokenIds, ...]:
        """The ids of each prompt of the request, as the engine computes them."""
        stages = stages if stages is not None else Stages()
        content = prompt.content
        if isinstance(content, Chat):
            with stages.stage("render"):
                text = self.render(content)
            with stages.stage("tokenize"):
                return (self._tokenizer.encode(text, content.add_special_tokens),)
        with stages.stage("tokenize"):
            return tuple(
                self._tokenizer.encode(item, content.add_special_tokens)
                if isinstance(item, str)
                else item
                for item in content.prompts
            )

    def encode(
        self, prompt: Prompt, root: BlockKey, block_size: int, stages: Stages
    ) -> tuple[Chain, ...]:
        """The chain of block keys of each prompt of the request, all starting at `root`.

        Records the stages render, tokenize and hash. Raises Unroutable where template or
        tokenizer fail.
        """
        prompts = self.token_ids(prompt, stages)
        with stages.stage("hash"):
            return tuple(
                Chain(block_keys(ids, root, block_size), len(ids) // TOKEN_BYTES) for ids in prompts
            )

    def tokenize(self, text: str) -> TokenIds:
        """Ids of a plain text, without the tokens that begin or end a prompt."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: TokenIds) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode(ids)


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


def _template_sources(
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
