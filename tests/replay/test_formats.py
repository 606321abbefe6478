"""Traces and generators: what they yield, in order, and what is wrong with a file."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from extproc.errors import ConfigError
from extproc.replay.formats import Format, Mooncake, SharedPrefix, Turns, format_of, lengths
from extproc.replay.traffic import Request, packed
from extproc.terms import KEY_BYTES
from tests.replay.ids import ids


def mooncake(path: Path, *lines: tuple[int, int, list[int]]) -> Path:
    with gzip.open(path, "wt") as file:
        for timestamp, tokens, hash_ids in lines:
            line = {"timestamp": timestamp, "input_length": tokens, "output_length": 5}
            print(json.dumps({**line, "hash_ids": hash_ids}), file=file)
    return path


def heads(requests: list[Request]) -> list[int]:
    return [len(request.keys) // KEY_BYTES for request in requests]


def test_different_ids_have_different_keys_and_equal_ids_equal_ones() -> None:
    keys = packed(ids(10_000))
    assert len({keys[at : at + 8] for at in range(0, len(keys), 8)}) == 10_000
    assert packed(ids(3)) == keys[:24]


def test_mooncake_keeps_whole_blocks_only(tmp_path: Path) -> None:
    path = mooncake(tmp_path / "t.jsonl.gz", (0, 1500, [0, 1, 2]), (0, 1536, [0, 1, 2]))
    requests = list(Mooncake(path, 1.0).arrivals())
    assert sorted(heads(requests)) == [2, 3]
    assert all(request.output == 5 for request in requests)


def test_mooncake_spreads_a_bucket_and_never_goes_back_in_time(tmp_path: Path) -> None:
    lines = [(bucket, 600, [0, number]) for bucket in (0, 3000, 6000) for number in range(20)]
    path = mooncake(tmp_path / "t.jsonl.gz", *lines)
    at = [request.at for request in Mooncake(path, 2.0, seed=1).arrivals()]
    assert at == sorted(at)
    assert len(set(at)) == 60
    assert Counter(int(time * 2 / 3) for time in at) == {0: 20, 1: 20, 2: 20}
    assert at != [request.at for request in Mooncake(path, 2.0, seed=2).arrivals()]


def test_mooncake_tells_conversations_by_the_blocks_that_they_repeat(tmp_path: Path) -> None:
    path = mooncake(
        tmp_path / "t.jsonl.gz",
        (0, 1100, [0, 1, 2]),
        (3000, 1100, [0, 7, 8]),
        (6000, 2100, [0, 1, 2, 3, 4]),
    )
    found = [(one.conversation, one.turn) for one in Mooncake(path, 1.0).arrivals()]
    assert found == [(1, 0), (2, 0), (1, 1)]


def test_a_conversation_goes_on_after_its_answer_with_all_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[[100, 50], [30, 20]]\n")
    turns = Turns(lengths(path), seed=3)
    (first,) = turns.arrivals()
    assert (first.tokens, first.output, first.turn) == (100, 50, 0)
    second = turns.following(first, ended=10.0)
    assert second is not None
    assert (second.tokens, second.turn) == (180, 1)
    assert second.at > 10.0
    assert second.keys.startswith(first.answered)
    assert turns.following(second, ended=20.0) is None


def test_a_conversation_ends_at_its_context(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[[100, 50], [30, 20]]\n")
    turns = Turns(lengths(path), context=190)
    (first,) = turns.arrivals()
    assert turns.following(first, ended=1.0) is None


def test_questions_of_a_group_share_its_prefix_and_no_more() -> None:
    requests = list(SharedPrefix(groups=2, questions=2, requests=50, seed=1).arrivals())
    shared = 6000 // 64 * KEY_BYTES
    assert len({request.keys[:shared] for request in requests}) == 2
    assert len({request.keys for request in requests}) == 4
    assert len({request.keys[shared:] for request in requests}) == 4


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    assert format_of(mooncake(tmp_path / "t.jsonl.gz", (0, 5, [0]))) is Format.MOONCAKE
    (tmp_path / "u.jsonl").write_text("\n[[1,2]]\n")
    assert format_of(tmp_path / "u.jsonl") is Format.LENGTHS


@pytest.mark.parametrize("text", ["", "hello\n", '{"timestamp": 1}\n'])
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.jsonl: (is (empty|no trace)|line 1: )"):
        format_of(tmp_path / "x.jsonl")


def test_a_line_that_is_wrong_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[[1, 2]]\n[[1]]\n")
    with pytest.raises(ConfigError, match=r"x\.jsonl: line 2: "):
        lengths(tmp_path / "x.jsonl")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        format_of(tmp_path / "none.jsonl")
