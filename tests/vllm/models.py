"""Tiny models with random weights behind real tokenizers: a folder each, as an operator has it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.prompt.families import TEMPLATES
from tests.prompt.mistral_files import write as write_mistral
from tests.tokenizers import tokenizer_dir

CONTEXT = 32_768


HERMES = {"tool_call_parser": "hermes"}
"""Without a parser for calls of tools vLLM refuses requests with tools."""

MISTRAL = HERMES | {"tokenizer_mode": "mistral"}
"""With Mistral's own parser vLLM 0.32.0 refuses every chat of a tokenizer of version 11 or later:
it calls a function of mistral-common 1.13 that has one argument more by now."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """name: what requests call it. tokenizer: of `tests.tokenizers`, or a version of Mistral's.

    config: what its config.json says besides the sizes that all have in common.
    template: in `tests/prompt/templates`, in the place of the tokenizer's own.
    tokenizer_class: in the place of the one that tokenizer_config.json names.
    options: of vLLM.
    """

    name: str
    tokenizer: str
    config: dict[str, Any]
    template: str | None = None
    tokenizer_class: str | None = None
    options: Mapping[str, Any] = field(default_factory=HERMES.copy)

    def write(self, folder: Path) -> Path:
        """Make the folder that both vLLM and Homing read."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(SIZES | self.config))
        if self.options is MISTRAL:
            return write_mistral(self.tokenizer, folder)
        source = tokenizer_dir(self.tokenizer)
        (folder / "tokenizer.json").symlink_to(source / "tokenizer.json")
        settings = json.loads((source / "tokenizer_config.json").read_text())
        if self.tokenizer_class:
            settings["tokenizer_class"] = self.tokenizer_class
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if self.template:
            template = (TEMPLATES / self.template).read_text()
            (folder / "chat_template.jinja").write_text(template)
        return folder


SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "torch_dtype": "float32",
}


def _config(kind: str, architecture: str, vocabulary: int) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [architecture], "vocab_size": vocabulary}


_QWEN3 = _config("qwen3", "Qwen3ForCausalLM", 151_936)
_LLAMA = _config("llama", "LlamaForCausalLM", 129_280)
_MISTRAL = _config("mistral", "MistralForCausalLM", 131_072)

MODELS = {
    model.name: model
    for model in (
        TinyModel("qwen3", "qwen3", _QWEN3 | {"tie_word_embeddings": True}),
        TinyModel("llama3_1", "llama3_1", _LLAMA, "llama3_1.jinja"),
        # By the class that its own configuration names, transformers 5 tokenizes it otherwise than
        # its tokenizer.json says (docs/exactness.md).
        TinyModel(
            "deepseek_v3", "deepseek_v3", _LLAMA, "deepseek_v3.jinja", "PreTrainedTokenizerFast"
        ),
        TinyModel("gemma3", "gemma3", _config("gemma3_text", "Gemma3ForCausalLM", 262_208)),
        # vLLM renders it with harmony, and so does Homing: no template is read.
        TinyModel(
            "gptoss",
            "gptoss",
            _config("gpt_oss", "GptOssForCausalLM", 201_088),
            options={"tool_call_parser": "openai"},
        ),
        TinyModel("mistral_v3", "v3t", _MISTRAL, options=MISTRAL),
        TinyModel("mistral_v13", "v13t", _MISTRAL, options=MISTRAL),
        # These write out all that a template is given.
        TinyModel("dump_parts", "qwen3", _QWEN3, "dump_parts.jinja"),
        TinyModel("dump_texts", "qwen3", _QWEN3, "dump_texts.jinja"),
    )
}
