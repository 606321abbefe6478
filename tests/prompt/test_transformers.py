"""Ids equal those of transformers' `apply_chat_template` on the same normalised messages."""

import os
import warnings
from random import Random
from typing import Any

import pytest

from extproc.errors import Unroutable
from extproc.prompt import Chat, Prompt, ServedModel, unpack_ids
from extproc.prompt.dialects import tools_of
from extproc.prompt.normalise import developer_as_system, normalise_messages, normalise_tools
from extproc.prompt.template import ChatTemplate
from tests.prompt.conversations import growing
from tests.prompt.families import load, template_file
from tests.tokenizers import tokenizer_dir

REQUESTS = 500
SLOW = ("llama3_1", "deepseek_v3", "gemma3", "gptoss")


def reference(name: str) -> Any:
    """transformers' own tokenizer of the family."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # As DeepSeek's configuration names it, transformers 5 rebuilds it as a Llama tokenizer and
        # leaves tokenizer.json; its engines name the class that does not.
        chosen = PreTrainedTokenizerFast if name == "deepseek_v3" else AutoTokenizer
        tokenizer = chosen.from_pretrained(tokenizer_dir(name))
    file = template_file(name)
    if file:
        tokenizer.chat_template = file.read_text()
    return tokenizer


def reference_ids(tokenizer: Any, chat: Chat) -> list[int] | None:
    """The ids by transformers; None where the template refuses the chat."""
    template = ChatTemplate(tokenizer.chat_template, {})
    messages = normalise_messages(chat.messages.decoded(), template.takes_parts)
    if not template.knows_developer:
        messages = developer_as_system(messages)
    try:
        ids = tokenizer.apply_chat_template(
            messages, normalise_tools(tools_of(chat)), return_dict=False, **chat.options
        )
    except Exception:
        return None
    return list(ids)


def our_ids(model: ServedModel, chat: Chat) -> list[int] | None:
    try:
        (ids,) = model.token_ids(Prompt(chat))
    except Unroutable:
        return None
    return unpack_ids(ids)


@pytest.mark.parametrize(
    "name", ["qwen3", *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]
)
def test_ids_are_those_of_transformers(name: str) -> None:
    model, tokenizer = load(name), reference(name)
    compared = refused = 0
    for seed in range(100_000):
        random = Random(seed)
        most_calls = 1 if name == "llama3_1" else 3
        for chat in growing(random, random.randint(1, 6), most_calls):
            expected = reference_ids(tokenizer, chat)
            assert our_ids(model, chat) == expected, f"seed {seed}"
            refused += expected is None
            compared += expected is not None
        if compared >= REQUESTS:
            break
    assert compared >= REQUESTS
    assert (refused > 0) == (name in ("gemma3",))
