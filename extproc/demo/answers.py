"""What a simulated engine answers: words drawn from a seed, each of them exactly one token.

One token a word means that an answer can be cut after any token, and that the next turn's prompt,
which has the answer as text, is tokenized to the ids that were generated: its blocks are hit again.
"""

from dataclasses import dataclass
from hashlib import blake2b, shake_128

from extproc.errors import ConfigError
from extproc.prompt import ServedModel
from extproc.terms import TOKEN_BYTES, TokenIds

_WORDS = """
the a of and to in is that for it as with on be are this by from or an at not you can have one which
will when if all use name value list set type first other new may more only same each into out time
no also call order object function number given method default following two three between both
after before then there where while such some any many most used using user example line part code
file text key word case note result item left right next last point start end group index test state
class field form string return error would should must does been has was were their these those
"""
"""Common words; tokenizers of any size have most of them as one token."""

FEWEST_WORDS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """pieces: the text of each word token, blanks included. ids: the same tokens, packed.

    finish_reason: `stop`, where an end token follows the words, or `length`.
    """

    pieces: tuple[str, ...]
    ids: TokenIds
    finish_reason: str

    @property
    def tokens(self) -> int:
        """Generated tokens: the end token counts as one."""
        return len(self.pieces) + (self.finish_reason == "stop")


class Vocabulary:
    """The words that a model's tokenizer has as one token. Raises ConfigError for too few."""

    def __init__(self, model: ServedModel) -> None:
        self._first = _single_tokens(model, "")
        self._next = _single_tokens(model, " ")
        if min(len(self._first), len(self._next)) < FEWEST_WORDS:
            raise ConfigError(
                f"the tokenizer of {model.name} has fewer than {FEWEST_WORDS} of the simulated "
                "engine's words as one token; give one of an English or multilingual model"
            )

    def answer(
        self, *, seed: bytes, usual_tokens: int, limit: int, ignore_eos: bool, after_blank: bool
    ) -> Answer:
        """The answer to a seed, always the same.

        usual_tokens: it ends by itself after half to one and a half times so many words.
        limit: it is cut after so many tokens. ignore_eos: it never ends by itself.
        after_blank: the prompt ends in a blank or a new line, so no blank comes first.
        """
        spread = int.from_bytes(blake2b(seed, digest_size=4).digest()) % (usual_tokens + 1)
        words = max(1, usual_tokens // 2 + spread)
        stops = words < limit and not ignore_eos
        count = words if stops else limit
        first = self._first if after_blank else self._next
        draws = shake_128(seed).digest(2 * count)
        drawn = [
            choices[int.from_bytes(draws[2 * i : 2 * i + 2]) % len(choices)]
            for i, choices in enumerate([first] + [self._next] * (count - 1))
        ]
        return Answer(
            pieces=tuple(text for text, _ in drawn),
            ids=TokenIds(b"".join(token for _, token in drawn)),
            finish_reason="stop" if stops else "length",
        )


def _single_tokens(model: ServedModel, before: str) -> list[tuple[str, TokenIds]]:
    tokenized = [(before + word, model.tokenize(before + word)) for word in _WORDS.split()]
    return [(text, ids) for text, ids in tokenized if len(ids) == TOKEN_BYTES]
