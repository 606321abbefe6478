"""A model's own tokenizer: text → ids as the engine computes them, and back.

`fastokens` is used where it agrees with `tokenizers` on a probe text at load, else `tokenizers`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import fastokens
import tokenizers

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.ids import pack_ids, unpack_ids
from extproc.terms import TokenIds

_Encode: TypeAlias = Callable[[Sequence[str], bool], list[TokenIds]]
"""(texts, whether special tokens are added to each) → ids of each."""

_SEGMENT_CACHE_BYTES = 64 << 20

PROBE = (
    "The quick brown fox's 12 jumps; they've 345,678.90 reasons…\r\n\n\n  \tdef f(x):\n"
    "        return x ** 2  # ok   \n\n"
    "Grüße, naïve façade — “quoted”… Привет, как дела? Ελληνικά Հայերեն עברית العربية "
    "हिन्दी বাংলা தமிழ் ไทยสวัสดี ລາວ မြန်မာ ქართული አማርኛ ខ្មែរ 한국어 "
    "日本語ひらがなカタカナ 中文字符，标点。"
    "e\u0301\u0302 \u1e9b\u0323 ﬁ ½ ² Ⅷ \u00a0\u2003\u200b\u200d\ufeff 𝕳𝖊𝖑𝖑𝖔 "
    "👍🏽👩‍👩‍👧‍👦🇩🇪❤️‍🔥 \u0000\u0007\u007f <s></s><unk><think></think> a\n\n\nb"
)
"""All scripts, marks, emoji, runs of blanks and control characters."""


class TextTokenizer(Protocol):
    """Texts ↔ ids, as a model's engine computes them. Thread-safe.

    source: the text of tokenizer.json, "" where the model has none. fast: whether it takes about
    a millisecond for 32 KB that are new to it; others take ten times as long.
    """

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def fast(self) -> bool: ...  # noqa: D102

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        """Ids of a text. Raises Unroutable where it cannot be tokenized."""

    def encode_pieces(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, as part of a prompt. Raises Unroutable as `encode` does."""

    def decode(self, ids: TokenIds) -> str:
        """Text of ids, special tokens left out."""


class Tokenizer:
    """Thread-safe; `fastokens` and `tokenizers` release the GIL on long texts.

    fast: whether `fastokens` is used. source: the text of tokenizer.json.
    try_fast: false leaves `fastokens` out, to compare with.
    """

    def __init__(self, file: Path, try_fast: bool = True) -> None:
        try:
            source = file.read_text("utf-8")
            reference = tokenizers.Tokenizer.from_str(source)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except Exception as error:  # `tokenizers` raises Exception itself
            raise ConfigError(f"{file}: not a tokenizer.json: {error}") from None
        # An engine neither truncates nor pads, whatever the file says.
        reference.no_truncation()
        reference.no_padding()
        self._reference = reference
        fast = _fast_encoder(source, reference) if try_fast else None
        self.source = source
        self.fast = fast is not None
        self._encode: _Encode = fast or _reference_encoder(reference)

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        """Ids of a text; special tokens that are written in it count as such, as in the engines.

        Raises Unroutable where the text cannot be tokenized.
        """
        return self._encode_all((text,), add_special_tokens)[0]

    def encode_pieces(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, as part of a prompt. Raises Unroutable as `encode` does."""
        return self._encode_all(texts, add_special_tokens=False)

    def decode(self, ids: TokenIds) -> str:
        """Text of ids, special tokens left out."""
        return str(self._reference.decode(unpack_ids(ids), skip_special_tokens=True))

    def _encode_all(self, texts: Sequence[str], add_special_tokens: bool) -> list[TokenIds]:
        try:
            return self._encode(texts, add_special_tokens)
        except UnicodeEncodeError:
            raise Unroutable("lone_surrogate") from None
        except BaseException as error:
            # What the libraries raise is not specified, and a panic in Rust is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise Unroutable("tokenizer_failed", type(error).__name__) from None


def _reference_encoder(reference: tokenizers.Tokenizer) -> _Encode:
    def encode(texts: Sequence[str], add_special_tokens: bool) -> list[TokenIds]:
        return [
            pack_ids(reference.encode(text, add_special_tokens=add_special_tokens).ids)
            for text in texts
        ]

    return encode


def _fast_encoder(source: str, reference: tokenizers.Tokenizer) -> _Encode | None:
    """The encoder of `fastokens`; None where it refuses the file or differs on the probe."""
    try:
        fast = fastokens.Tokenizer.from_json_str(source)
        fast.no_truncation()
        fast.no_padding()
        fast.enable_segment_cache(_SEGMENT_CACHE_BYTES)
        encode_flat = fast.encode_batch_flat

        def encode(texts: Sequence[str], add_special_tokens: bool) -> list[TokenIds]:
            # One by one: a batch of several wakes a pool of threads and waits for it.
            return [TokenIds(encode_flat([text], add_special_tokens)[0]) for text in texts]

        expected = _reference_encoder(reference)
        specials = [token.content for token in reference.get_added_tokens_decoder().values()]
        probe = (PROBE + " ".join(specials) + "".join(specials), PROBE)
        for add_special_tokens in (False, True):
            if encode(probe, add_special_tokens) != expected(probe, add_special_tokens):
                return None
    except Exception:  # a file that only `tokenizers` reads is no error
        return None
    return encode
