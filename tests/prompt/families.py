"""Models of the tests: real tokenizers, with templates that behave like the published ones."""

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from extproc.prompt import ServedModel
from extproc.prompt.modelfiles import read_templates
from extproc.prompt.template import ChatTemplate
from extproc.prompt.tokenizer import Tokenizer
from tests.tokenizers import tokenizer_dir

FAMILIES = ("qwen3", "llama3_1", "deepseek_v3", "gemma3", "gptoss")

TEMPLATES = Path(__file__).parent / "templates"


def template_file(name: str) -> Path | None:
    """The family's template; None where the tokenizer's own is used."""
    file = TEMPLATES / f"{name}.jinja"
    return file if file.exists() else None


@cache
def tokenizer(name: str) -> Tokenizer:
    """A family's tokenizer."""
    return Tokenizer(tokenizer_dir(name) / "tokenizer.json")


def load(name: str, template: Path | None = None, **options: Any) -> ServedModel:
    """A family's model, perhaps with another template; its tokenizer is loaded once for all."""
    now = options.pop("now", datetime.now)
    options.setdefault("whole_bytes", 0)  # the chats of the tests are short
    templates = read_templates(tokenizer_dir(name), template or template_file(name), now)
    return ServedModel(name, tokenizer(name), templates, **options)


def templates(name: str) -> ChatTemplate:
    """A family's template alone, compiled anew."""
    return read_templates(tokenizer_dir(name), template_file(name))["default"]
