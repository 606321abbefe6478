"""Trains the demo's tokenizer: a byte-level BPE of 4,000 tokens with ChatML's special tokens.

    python -m extproc.demo.train_tokenizer

Training text: the language reference that ships with Python 3.11.7 as `pydoc_data.topics`
(PSF licence, `corpus/LICENSE.txt`), kept here in `corpus/` because another Python has another text.
The same text gives the same `tokenizer.json`, byte for byte; a test trains again and compares.
"""

import json
import lzma
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from extproc.demo.chat_template import CHAT_TEMPLATE

VOCABULARY = 4_000
CONTEXT_TOKENS = 131_072
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HERE = Path(__file__).parent
DIRECTORY = HERE / "tokenizer"

PRE_TOKENS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Words, numbers of up to three digits and runs of signs keep the one space before them."""


def train() -> str:
    """`tokenizer.json` as text. Reads the corpus; about a second."""
    text = lzma.decompress((HERE / "corpus" / "topics.txt.xz").read_bytes()).decode()
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return tokenizer.to_str() + "\n"


def configuration() -> str:
    """`tokenizer_config.json` as text, in the form that transformers reads."""
    added = {
        str(number): {"content": token, "special": True, "normalized": False}
        | {"lstrip": False, "rstrip": False, "single_word": False}
        for number, token in enumerate(SPECIAL_TOKENS)
    }
    return (
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": CONTEXT_TOKENS,
                "add_bos_token": False,
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "clean_up_tokenization_spaces": False,
                "added_tokens_decoder": added,
                "chat_template": CHAT_TEMPLATE,
            },
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    )


def main() -> None:
    """Write both files of the tokenizer directory."""
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "tokenizer.json").write_text(train(), encoding="utf-8")
    (DIRECTORY / "tokenizer_config.json").write_text(configuration(), encoding="utf-8")


if __name__ == "__main__":
    main()
