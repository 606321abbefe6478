"""When a prefix that is waited for is worth another holder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import (
    Candidate,
    Crowds,
    Load,
    Outlook,
    PricedTTFT,
    Ranking,
    Score,
    Speed,
    Turn,
)
from extproc.routing.crowds import MOST_PREFIXES
from extproc.terms import BlockKey, Endpoint, InstanceId

A, B = InstanceId("a"), InstanceId("b")
PREFIX, OTHER = BlockKey(7), BlockKey(8)


def score(name: InstanceId, cached: int, wait_s: float) -> Score:
    return Score(name, Endpoint("10.0.0.1:8000"), cached, wait_s, 0.0, 0.0)


def home(wait_s: float) -> Ranking:
    return Ranking((score(A, 900, wait_s), score(B, 0, 0.0)))


MOVED = Ranking((score(B, 0, 0.0), score(A, 900, 2.0)))


def test_waits_of_one_prefix_add_up_and_fade() -> None:
    crowds = Crowds()
    for _ in range(3):
        crowds.placed(PREFIX, home(0.5), 0.0)
    assert crowds.waited_s(PREFIX, 0.0) == pytest.approx(1.5)
    assert 0.5 < crowds.waited_s(PREFIX, 30.0) < 0.6
    assert crowds.waited_s(OTHER, 0.0) == crowds.waited_s(None, 0.0) == 0.0


def test_nothing_is_waited_for_where_the_holder_is_the_emptiest() -> None:
    crowds = Crowds()
    crowds.placed(PREFIX, Ranking((score(A, 900, 0.5), score(B, 0, 0.5))), 0.0)
    crowds.placed(None, home(9.0), 0.0)
    assert crowds.waited_s(PREFIX, 0.0) == 0.0


def test_another_holder_is_paid_for_by_what_was_waited() -> None:
    crowds = Crowds()
    crowds.placed(PREFIX, home(5.0), 0.0)
    crowds.placed(PREFIX, MOVED, 0.0)
    assert crowds.waited_s(PREFIX, 0.0) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.floats(0, 10)), max_size=60))
def test_no_more_counts_than_was_waited(turns: list[tuple[int, float, float]]) -> None:
    crowds, total, now = Crowds(), dict.fromkeys(range(4), 0.0), 0.0
    for prefix, wait_s, passed_s in turns:
        now += passed_s
        crowds.placed(BlockKey(prefix), home(wait_s), now)
        total[prefix] += wait_s
        assert 0.0 <= crowds.waited_s(BlockKey(prefix), now) <= total[prefix] + 1e-9


def test_what_is_remembered_has_a_bound() -> None:
    crowds = Crowds()
    for prefix in range(MOST_PREFIXES + 1):
        crowds.placed(BlockKey(prefix), home(1.0), 0.0)
    assert crowds.waited_s(BlockKey(0), 0.0) == 0.0
    assert crowds.waited_s(BlockKey(1), 0.0) == 1.0


def test_a_crowd_gets_a_second_holder_and_a_chat_does_not() -> None:
    """Each turn waits a second at home, which saves 2.4: of one prefix, or of many."""
    for is_crowd in (True, False):
        outlook, picked = Outlook(Speed(1_000.0), 0.0), []
        candidates = [
            Candidate(A, Endpoint("10.0.0.1:8000"), 2_400),
            Candidate(B, Endpoint("10.0.0.1:8001"), 0),
        ]
        for turn in range(5):
            prefix = PREFIX if is_crowd else BlockKey(100 + turn)
            loads = [Load(1_000.0, 1), Load(0.0, 0)]
            view = outlook.view(candidates, loads, 2, 0.0, prefix)
            ranking = PricedTTFT().rank(Turn(2_500), view)
            outlook.crowds.placed(prefix, ranking, 0.0)
            picked.append(ranking.best.instance)
        assert picked == ([A, A, A, B, A] if is_crowd else [A] * 5)
