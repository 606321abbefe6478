import pytest

from extproc.prompt import ServedModel
from tests.tokenizers import tokenizer_dir


@pytest.fixture(scope="session")
def qwen3() -> ServedModel:
    """The real tokenizer and chat template of Qwen3."""
    return ServedModel.load("qwen3", tokenizer_dir("qwen3"), whole_bytes=0)  # chats are short
