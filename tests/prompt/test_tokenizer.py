"""The tokenizer: fastokens where it agrees with `tokenizers`, and nothing cut or padded."""

import json
from pathlib import Path
from typing import Any

import fastokens
import pytest
import tokenizers

import extproc.demo
from extproc.errors import Unroutable
from extproc.prompt import tokenizer as tokenizer_module
from extproc.prompt import unpack_ids
from extproc.prompt.tokenizer import PROBE, Tokenizer

DEMO = Path(extproc.demo.__file__).parent / "tokenizer" / "tokenizer.json"
TEXTS = ["", "hello", PROBE, "<|im_start|>user\nhi<|im_end|>", "a  b\t\n\n c", "👩‍👩‍👧"]


def ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return unpack_ids(tokenizer.encode(text, add_special_tokens=special))


def changed(tmp_path: Path, **parts: Any) -> Path:
    """The demo's tokenizer.json with these parts of it replaced."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(DEMO.read_text()) | parts))
    return file


def test_fast_tokenizer_is_used_and_agrees() -> None:
    fast, slow = Tokenizer(DEMO), Tokenizer(DEMO, try_fast=False)
    assert (fast.fast, slow.fast) == (True, False)
    for text in TEXTS:
        assert ids(fast, text) == ids(slow, text)
    assert fast.encode_pieces(TEXTS) == slow.encode_pieces(TEXTS)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    file = changed(
        tmp_path,
        truncation={
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        padding={
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    )
    expected = ids(Tokenizer(DEMO), "one two three four five six seven")
    assert len(expected) > 4
    for try_fast in (True, False):
        tokenizer = Tokenizer(file, try_fast)
        assert tokenizer.fast is try_fast
        assert ids(tokenizer, "one two three four five six seven") == expected


def test_file_that_only_tokenizers_reads_is_read_by_it(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?")
    words = tokenizers.Tokenizer(model)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = tmp_path / "tokenizer.json"
    words.save(str(file))
    tokenizer = Tokenizer(file)
    assert not tokenizer.fast
    assert ids(tokenizer, "hello big world") == [0, 2, 1]


@pytest.mark.parametrize("special", [False, True])
def test_fast_tokenizer_that_differs_on_the_probe_is_not_used(
    monkeypatch: pytest.MonkeyPatch, special: bool
) -> None:
    """As if fastokens had another idea of one token of the probe."""
    real = fastokens.Tokenizer

    class Other:
        def __init__(self, source: str) -> None:
            self._real = real.from_json_str(source)

        from_json_str = classmethod(lambda cls, source: cls(source))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def encode_batch_flat(self, texts: list[str], add: bool) -> tuple[bytes, bytes]:
            found, bounds = self._real.encode_batch_flat(texts, add)
            return (found[:-4] + b"\0\0\0\0" if add is special else found), bounds

    monkeypatch.setattr(tokenizer_module.fastokens, "Tokenizer", Other)
    tokenizer = Tokenizer(DEMO)
    assert not tokenizer.fast
    assert ids(tokenizer, PROBE) == ids(Tokenizer(DEMO, try_fast=False), PROBE)


def test_lone_surrogate_cannot_be_tokenized() -> None:
    for try_fast in (True, False):
        with pytest.raises(Unroutable):
            Tokenizer(DEMO, try_fast).encode("\ud800", add_special_tokens=False)


def test_beginning_token_is_added_where_asked(tmp_path: Path) -> None:
    begin = {"id": "<|im_start|>", "type_id": 0}
    single = [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}]
    number = tokenizers.Tokenizer.from_file(str(DEMO)).token_to_id("<|im_start|>")
    file = changed(
        tmp_path,
        post_processor={
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<|im_start|>": {
                    "id": "<|im_start|>",
                    "ids": [number],
                    "tokens": ["<|im_start|>"],
                }
            },
        },
    )
    for try_fast in (True, False):
        tokenizer = Tokenizer(file, try_fast)
        assert ids(tokenizer, "hello", special=True) == [number, *ids(tokenizer, "hello")]
