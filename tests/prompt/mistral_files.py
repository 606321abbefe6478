"""Mistral's tokenizers of the tests: real files that `mistral-common` ships, and later versions.

Of the versions above 7 no file is in a registry. They are the vocabulary of a real tekken.json with
the special tokens that the library knows, under their number.
"""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

_DATA = Path(str(files("mistral_common"))) / "data"

REAL = {
    "v2": _DATA / "mistral_instruct_tokenizer_240216.model.v2",
    "v3": _DATA / "mistral_instruct_tokenizer_240323.model.v3",
    "v3t": _DATA / "tekken_240718.json",
    "v7": _DATA / "mistral_instruct_tokenizer_241114.model.v7",
}
MADE = ("v11t", "v13t", "v15t")
"""t: tekken, else SentencePiece."""


@cache
def _tekken() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(REAL["v3t"].read_bytes())
    return value


def write(version: str, directory: Path) -> Path:
    """The directory, made to hold the tokenizer as a model's does."""
    directory.mkdir(parents=True, exist_ok=True)
    if version in REAL:
        file = REAL[version]
        name = "tekken.json" if file.suffix == ".json" else f"tokenizer.model.{version}"
        (directory / name).symlink_to(file)
        return directory
    old = [info["token_str"] for info in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    tokens = [*old, *[token.value for token in SpecialTokens if token.value not in old]]
    model = _tekken() | {
        "config": _tekken()["config"] | {"version": version.removesuffix("t")},
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True}
            for rank, token in enumerate(tokens)
        ],
        "image": {"image_patch_size": 16, "max_image_size": 1024, "spatial_merge_size": 2},
    }
    if version == "v15t":
        effort = {"type": "enum", "accepts_none": True, "values": ["none", "high"]}
        model["model_settings_builder"] = {"reasoning_effort": effort | {"default": "none"}}
    (directory / "tekken.json").write_text(json.dumps(model))
    return directory
