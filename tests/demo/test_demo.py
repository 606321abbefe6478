import itertools
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from extproc.demo.conversations import conversations
from extproc.demo.home import lost_turns
from extproc.demo.player import Turn, play
from extproc.demo.report import Report
from extproc.errors import PeerViolation
from tests.demo.client import Client, engine

TURN = Turn("shop 1", 1, "engine-1", 340, 0, 20.0, "cold")


async def played(
    clients: list[Client], rounds: int, salt: str = "test", model: str = "demo-model"
) -> list[Turn]:
    turns: list[Turn] = []
    await play(
        conversations(4),
        rounds,
        model=model,
        salt=salt,
        next_url=itertools.cycle([client.serving.url for client in clients]).__next__,
        heard=turns.append,
    )
    return turns


def test_conversations_are_of_every_kind() -> None:
    listed = conversations(8)
    assert {c.stream for c in listed} == {c.chat for c in listed} == {True, False}
    assert {c.stream for c in listed if c.chat} == {True, False}
    assert listed[0].system == listed[3].system
    assert len({str(c.body()) for c in listed}) == 8


async def test_every_prompt_is_longer_than_20_blocks_from_the_first_turn() -> None:
    async with engine() as client:
        turns = await played([client], 1)
    assert len(turns) == 4
    assert all(turn.prompt_tokens >= 20 * 16 for turn in turns)


async def test_on_one_engine_every_turn_comes_home() -> None:
    async with engine() as client:
        turns = await played([client], 4)
    assert sorted((t.conversation, t.number) for t in turns) == [
        (conversation.name, number)
        for conversation in sorted(conversations(4), key=lambda c: c.name)
        for number in (1, 2, 3, 4)
    ]
    assert lost_turns(turns, 16) == []
    assert {turn.ttft_ms is None for turn in turns} == {True, False}


async def test_round_robin_loses_turns() -> None:
    async with (
        engine() as first,
        engine(name="engine-2") as second,
        engine(name="engine-3") as third,
    ):
        turns = await played([first, second, third], 4)
    assert {turn.served for turn in turns} == {"engine-1", "engine-2", "engine-3"}
    assert lost_turns(turns, 16)


async def test_another_salt_starts_cold_on_warm_engines() -> None:
    async with engine() as client:
        first = await played([client], 2, salt="a")
        second = await played([client], 2, salt="b")
    by_place = [
        {(t.conversation, t.number): t.cached_tokens for t in run} for run in (first, second)
    ]
    assert by_place[0][("review 2", 1)] == by_place[1][("review 2", 1)] == 0


async def test_an_error_answer_ends_the_demo_with_what_the_engine_said() -> None:
    async with engine() as client:
        with pytest.raises(PeerViolation, match=r"answered 404: .*`other` does not exist"):
            await played([client], 1, model="other")


@pytest.mark.parametrize(("cached", "lost"), [(0, True), (302, True), (303, False), (336, False)])
def test_a_turn_came_home_with_nine_tenths_of_the_prompt_before_it(cached: int, lost: bool) -> None:
    """The prompt before had 340 tokens: 336 in full blocks, of which 302.4 are nine tenths."""
    later = replace(TURN, number=2, prompt_tokens=400, cached_tokens=cached)
    found = lost_turns([later, TURN], 16)
    assert found == ([(later, 336)] if lost else [])


def test_first_turns_are_not_judged() -> None:
    assert lost_turns([TURN, replace(TURN, conversation="sql 3")], 16) == []


def test_what_is_printed_without_a_terminal_is_plain_lines() -> None:
    out = StringIO()
    report = Report(Console(file=out))
    why = "home; cached=2,944/3,010; wait=0.0ms; prefill=22.1ms; price=0.3ms"
    report.opening("Homing")
    report.turn(replace(TURN, cached_tokens=320, why=why))
    report.turn(replace(TURN, ttft_ms=None))
    report.comparison([("round robin", [TURN]), ("homing", [replace(TURN, cached_tokens=170)])])
    report.verdict(True, "Every turn came home.")
    text = out.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    (first,) = [line for line in lines if line.endswith(why)]
    assert first.split()[:7] == ["shop", "1", "1", "engine-1", "340", "320", "94%"]
    assert any(line.split()[:1] == ["homing"] and "50.0%" in line for line in lines)
    assert lines[-1] == "Every turn came home."
