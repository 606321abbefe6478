"""Known beginnings of texts: found whole, never beyond what is equal, and they change no key."""

import re
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.prompt import beginnings, block_keys, pack_ids, pieces
from extproc.prompt.beginnings import Beginnings, Marked
from extproc.prompt.pieces import PieceMemo, root_node
from extproc.stages import Stages
from extproc.terms import BlockKey, TokenIds
from tests.prompt.conversations import growing
from tests.prompt.families import load
from tests.prompt.test_memos import encoded

STRIDE = 8


@pytest.fixture(autouse=True)
def short_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "STRIDE", STRIDE)
    monkeypatch.setattr(pieces, "_MIN_MARKED", 2 * STRIDE)


TEXTS = st.lists(st.binary(min_size=1, max_size=60), max_size=12)


@given(TEXTS, st.randoms())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_longest_known_beginning_is_found(texts: list[bytes], random: Random) -> None:
    known: Beginnings[bytes] = Beginnings(1 << 20)
    kept: set[bytes] = set()
    for text in texts:
        # Texts that begin like others: what is kept of one, and then something else.
        text = random.choice([b"", *kept])[: random.randrange(80)] + text
        expected = max(
            (one for one in kept if len(one) < len(text) and text.startswith(one)),
            key=len,
            default=None,
        )
        found = known.find(Marked(text))
        assert found == (None if expected is None else (len(expected), expected))
        size = random.randint(0, len(text))
        known.put(Marked(text), size, text[:size], 1)
        if size >= STRIDE:
            kept.add(text[:size])


def test_seeds_have_nothing_in_common() -> None:
    known: Beginnings[str] = Beginnings(1000)
    known.put(Marked(b"x" * 20, 1), 16, "one", 1)
    assert known.find(Marked(b"x" * 20, 1)) == (16, "one")
    assert known.find(Marked(b"x" * 20, 2)) is None


def test_whole_text_is_no_beginning_of_itself() -> None:
    known: Beginnings[str] = Beginnings(1000)
    known.put(Marked(b"x" * 20), 20, "all", 1)
    assert known.find(Marked(b"x" * 20)) is None
    assert known.find(Marked(b"x" * 21)) == (20, "all")


def test_what_is_kept_is_bounded() -> None:
    known: Beginnings[int] = Beginnings(200)
    for number in range(50):
        text = b"%08d %d" % (number, number)
        known.put(Marked(text), len(text), number, 10)
        assert known.size <= 200
    for number in range(50):  # all part within one stride
        text = b"same beg" + b"%d" % number
        known.put(Marked(text), len(text), number, 10)
        assert known.size <= 200
        assert known.find(Marked(text + b"!")) == (len(text), number)


CUT = "<s>"


def fake_ids(texts: list[str]) -> list[TokenIds]:
    """Ids that depend on the whole of what is between two cuts."""
    return [
        pack_ids([len(part) + 1_000 for part in text.split(CUT)[not text.split(CUT)[0] :]])
        for text in texts
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 300),
            st.lists(st.sampled_from([CUT, "<s", "s>", "é", "日本", "word ", "x"]), max_size=30),
        ),
        max_size=12,
    ),
    st.sampled_from([0, 3_000, 200_000]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keys_are_those_of_the_whole_text(
    edits: list[tuple[int, list[str]]], memo_bytes: int
) -> None:
    """Each text is the one before, cut off somewhere and continued, under two roots."""
    memo = PieceMemo(CUT, fake_ids, memo_bytes)  # type: ignore[arg-type]
    text = ""
    for keep, words in edits:
        starts = [found.start() for found in re.finditer(CUT, text)]
        text = text[: starts[keep % len(starts)] if starts and keep % 3 else keep] + "".join(words)
        ids = TokenIds(b"".join(fake_ids([text])))
        for root in (BlockKey(7), BlockKey(8)):
            node = memo.extend(root_node(root, 2), text.encode(), 2, Stages())
            assert node.all_keys() == block_keys(ids, root, 2)
            assert node.tokens == len(ids) // 4
            assert memo.size <= memo_bytes


def test_known_beginning_is_not_split_again() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[TokenIds]:
        asked.extend(texts)
        return fake_ids(texts)

    memo = PieceMemo(CUT, encode, 200_000)  # type: ignore[arg-type]
    base = root_node(BlockKey(7), 4)
    history = "".join(f"{CUT}message {i}" for i in range(20))
    memo.extend(base, f"{history}{CUT}opened".encode(), 4, Stages())
    asked.clear()
    split: list[int] = []
    whole = memo._split
    memo._split = lambda text: split.append(len(text)) or whole(text)  # type: ignore[method-assign,func-returns-value]
    memo.extend(base, f"{history}{CUT}answer{CUT}opened".encode(), 4, Stages())
    assert asked == [f"{CUT}answer", f"{CUT}opened"]
    assert split == [len(f"{CUT}answer{CUT}opened")]


def test_chains_of_chats_do_not_depend_on_what_is_remembered() -> None:
    off = load("qwen3", memo_bytes=0)
    options: list[dict[str, Any]] = [{}, {"whole_bytes": inf}, {"memo_bytes": 40_000}]
    models = [load("qwen3", **one) for one in options]
    for seed in range(60):
        random = Random(seed)
        for chat in growing(random, random.randint(1, 8)):
            expected = encoded(off, chat)
            assert [encoded(model, chat) for model in models] == [expected] * 3, f"seed {seed}"
