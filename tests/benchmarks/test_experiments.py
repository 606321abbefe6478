"""The experiments of docs/policy.md: their traffic, what they compute, and the page they fill."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "policy.md"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """As when a benchmark is run as a script."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def drawn(slow: float) -> dict[tuple[int, int], tuple[int, int, bytes]]:
    """Every turn of some chats by (chat, turn), played with answers that take so long."""
    from _experiments.traffic import Chats

    traffic = Chats(rate=1.0, seconds=30, weights=(2.0, 1.0)).traffic(seed=7)
    turns: dict[tuple[int, int], tuple[int, int, bytes]] = {}
    for first in traffic.arrivals():
        turn: Any = first
        while turn is not None:
            turns[turn.chat, turn.turn] = (turn.tokens, turn.tenant, turn.keys)
            turn = traffic.following(turn, turn.at + slow)
    return turns


def test_chats_are_the_same_however_slowly_they_are_answered() -> None:
    quick, slow = drawn(0.1), drawn(9.0)
    assert len(quick) > 50
    assert quick == slow


def test_a_turn_begins_with_the_turn_before_and_tenants_share_their_prefix() -> None:
    turns = drawn(1.0)
    for (chat, turn), (tokens, _, keys) in turns.items():
        if turn:
            before = turns[chat, turn - 1]
            assert tokens > before[0]
            assert keys.startswith(before[2])
    prefix = 2_000 // 64 * 8
    heads = {(tenant, keys[:prefix]) for _, tenant, keys in turns.values()}
    assert len(heads) == 2


def test_an_agent_begins_its_next_chat_when_the_last_has_ended() -> None:
    from _experiments.traffic import Chats

    traffic = Chats(rate=9.0, seconds=600, agents=2, turns=3.0).traffic(seed=7)
    turn: Any = list(traffic.arrivals())[1]
    chats = []
    while turn is not None:
        chats.append((turn.chat, turn.turn, turn.at))
        turn = traffic.following(turn, turn.at + 1.0)
    first = [(chat, at) for chat, number, at in chats if number == 0]
    assert [chat for chat, _ in first] == list(range(1, 2 * len(first), 2))
    assert len(first) > 3
    assert first[-1][1] < 600


def test_capacity_is_where_the_share_in_time_falls_below_nine_of_ten() -> None:
    from _experiments.sweep import capacity

    assert capacity({1.0: (0, 0, 1.0), 2.0: (0, 0, 0.95), 3.0: (0, 0, 0.85)}) == pytest.approx(2.5)
    assert capacity({1.0: (0, 0, 1.0), 2.0: (0, 0, 0.95)}) == 2.0
    assert capacity({1.0: (0, 0, 0.5)}) == 0.0


def test_a_table_goes_between_its_marks_and_nowhere_else() -> None:
    from experiments import fill

    page = "a\n<!-- table: x -->\nold\n<!-- end -->\n<!-- table: y -->\n<!-- end -->\n"
    filled = fill(page, "x", "| new |")
    assert filled == page.replace("old", "| new |")
    assert fill(filled, "x", "| new |") == filled
    assert fill(page, "z", "| new |") == page


def test_the_page_has_a_table_and_a_plot_of_every_experiment() -> None:
    from experiments import EXPERIMENTS

    page = PAGE.read_text()
    tables = dict(re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL))
    plots = re.findall(r"\]\(plots/(\w+)\.svg\)", page)
    assert set(tables) == set(plots) == set(EXPERIMENTS)
    for name, table in tables.items():
        assert table.count("\n") > 4, name
        assert (PAGE.parent / "plots" / f"{name}.svg").read_text().startswith("<svg")


def test_a_chat_comes_back_within_a_second_from_a_call_of_a_tool_and_from_nothing_else() -> None:
    from _experiments.traffic import Chats

    traffic = Chats(rate=1.0, seconds=60, think_s=1e6, calls=0.75).traffic(seed=7)
    turns = list(traffic.arrivals())
    back = [(turn.calls_tool, traffic.following(turn, turn.at)) for turn in turns]
    gaps = [
        (calls, after.at - turn.at)
        for turn, (calls, after) in zip(turns, back, strict=True)
        if after
    ]
    assert all((0.5 <= gap <= 1.0) == calls for calls, gap in gaps)
    assert 0.6 < sum(calls for calls, _ in gaps) / len(gaps) < 0.9
