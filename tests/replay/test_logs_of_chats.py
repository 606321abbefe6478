"""Traces with texts: logs of requests, and ShareGPT's dump."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.engine import DEMO_TOKENIZER
from extproc.errors import ConfigError
from extproc.prompt import ServedModel, parse_body, root_seed
from extproc.replay.formats import ChatLog, Format, Mooncake, format_of, sharegpt_lengths
from extproc.stages import Stages
from extproc.terms import KEY_BYTES
from tests.replay.test_formats import mooncake

DEMO = ServedModel.load("", DEMO_TOKENIZER)


def log(path: Path, *lines: dict[str, Any]) -> ChatLog:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ChatLog(path, DEMO, 1.0)


def said(*words: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(words)]


HELLO = said("The ships bring spice and salt to the harbour. " * 9)


def test_a_chat_log_has_the_keys_and_the_tokens_that_the_product_sees(tmp_path: Path) -> None:
    body = {"model": "m", "messages": HELLO, "cache_salt": "s"}
    line = {**body, "timestamp": 7, "output_tokens": 9}
    (request,) = log(tmp_path / "c.jsonl", line).arrivals()
    prompt = parse_body("/v1/chat/completions", json.dumps(body).encode())
    root = root_seed(secret=b"", model="m", salt="s", block_size=ChatLog.block_size)
    (chain,) = DEMO.encode(prompt, root, ChatLog.block_size, Stages())
    assert (request.keys, request.tokens, request.output) == (chain.keys, chain.tokens, 9)
    assert len(request.keys) // KEY_BYTES > 3


def test_a_chat_log_may_be_of_completions_and_compressed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"prompt": "spice and salt", "time": 1}))
    assert format_of(path) is Format.CHAT_LOG
    (request,) = ChatLog(path, DEMO, 1.0).arrivals()
    assert request.tokens == len(DEMO.tokenize("spice and salt")) // 4


@pytest.mark.parametrize(
    "times",
    [
        (1_763_999_000, 1_763_999_002.5),
        (1_763_999_000_000, 1_763_999_002_500),
        ("2026-11-25T12:00:00Z", "2026-11-25T14:00:02.5+02:00"),
    ],
    ids=["seconds", "milliseconds", "ISO 8601"],
)
@pytest.mark.parametrize("name", ["timestamp", "time", "created"])
def test_a_chat_log_says_its_times_in_any_of_three_ways_and_not_in_order(
    tmp_path: Path, name: str, times: tuple[Any, Any]
) -> None:
    lines = [{name: time, "messages": HELLO} for time in reversed(times)]
    assert [one.at for one in log(tmp_path / "c.jsonl", *lines).arrivals()] == [0.0, 2.5]


def test_a_chat_log_tells_conversations_by_what_they_repeat_or_by_their_names(
    tmp_path: Path,
) -> None:
    opening, more = HELLO[0]["content"], "And gold from the hills beyond the river, too. " * 5
    system = [{"role": "system", "content": "You know all harbours of the world. " * 20}]
    lines: list[dict[str, Any]] = [
        {"messages": system + said(opening)},
        {"messages": system + said(more)},
        {"messages": system + said(opening, "Yes. " * 20, more)},
        {"messages": system + said("a"), "session": "x"},
        {"messages": system + said("b"), "session": "x"},
    ]
    timed = [{**line, "time": at} for at, line in enumerate(lines)]
    turns = [(one.conversation, one.turn) for one in log(tmp_path / "c.jsonl", *timed).arrivals()]
    assert turns[2] == (turns[0][0], 1)
    assert turns[4] == (turns[3][0], 1)
    assert len({number for number, _ in turns}) == 3


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({}, 200),
        ({"output_tokens": 12}, 12),
        ({"usage": {"completion_tokens": 13}}, 13),
        ({"response": "spice and salt"}, len(DEMO.tokenize("spice and salt")) // 4),
    ],
)
def test_a_chat_log_says_how_long_an_answer_was(
    tmp_path: Path, more: dict[str, Any], tokens: int
) -> None:
    (one,) = log(tmp_path / "c.jsonl", {"time": 1, "messages": HELLO, **more}).arrivals()
    assert one.output == tokens


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"messages": HELLO}, "has no time"),
        ({"messages": HELLO, "time": "noon"}, "time: is no time of ISO 8601"),
        ({"messages": HELLO, "time": -1}, "time: is no time in seconds"),
        ({"messages": HELLO, "time": float("nan")}, "time: is no time in seconds"),
        ({"messages": 3, "time": 1}, "messages"),
        ({"messages": HELLO, "time": 1, "output_tokens": -5}, "output_tokens: is not a number"),
        ({"prompt": ["a", "b"], "time": 1}, "prompt: several"),
    ],
)
def test_a_line_of_a_chat_log_that_is_wrong_is_named(
    tmp_path: Path, line: dict[str, Any], what: str
) -> None:
    good = {"time": 0, "messages": HELLO}
    with pytest.raises(ConfigError, match=rf"c\.jsonl: line 2: .*{what}"):
        list(log(tmp_path / "c.jsonl", good, line).arrivals())


DUMP = [
    {
        "id": "1",
        "conversations": [
            {"from": "gpt", "value": "before"},
            {"from": "human", "value": "one two"},
            {"from": "human", "value": "three"},
            {"from": "gpt", "value": "four five six seven"},
            {"from": "human", "value": "eight"},
        ],
    },
    {"id": "2", "conversations": [{"from": "system", "value": "nothing"}]},
]


@pytest.mark.parametrize("as_lines", [True, False])
def test_a_sharegpt_dump_is_read_as_lengths_of_turns(tmp_path: Path, as_lines: bool) -> None:
    path = tmp_path / "s.json"
    path.write_text("\n".join(map(json.dumps, DUMP)) if as_lines else json.dumps(DUMP, indent=1))
    assert format_of(path) is Format.SHAREGPT
    assert sharegpt_lengths(path, lambda text: len(text.split())) == [[(3, 4), (1, 0)]]


def test_a_sharegpt_dump_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('[{"conversations": 3}]')
    with pytest.raises(ConfigError, match=r"s\.json: Expected `array`"):
        sharegpt_lengths(path, len)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([(5, 600, [0, 1]), (4, 600, [0, 1])], "line 2: timestamp"),
        ([(5, 1100, [0])], "line 1: hash_ids"),
        ([(5, -1, [0])], "line 1: .*input_length"),
        ([(-5, 1, [0])], "line 1: .*timestamp"),
    ],
)
def test_a_mooncake_trace_that_is_wrong_is_named_by_line_and_field(
    tmp_path: Path, lines: list[tuple[int, int, list[int]]], what: str
) -> None:
    path = mooncake(tmp_path / "t.jsonl.gz", *lines)
    with pytest.raises(ConfigError, match=what):
        list(Mooncake(path, 1.0).arrivals())


def test_a_compressed_file_that_is_cut_is_named(tmp_path: Path) -> None:
    path = mooncake(tmp_path / "t.jsonl.gz", *[(at, 600, [0, at]) for at in range(5_000)])
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(ConfigError, match=r"t\.jsonl\.gz: "):
        list(Mooncake(path, 1.0).arrivals())
