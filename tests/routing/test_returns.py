"""Turns that are due home: what is remembered of them, and what a prefill has them wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import CERTAIN_S, InstanceView, PoolView, PricedTTFT, Turn
from extproc.routing.returns import (
    LONGEST_S,
    MOST_CLIENTS,
    MOST_DUE,
    SEEN,
    Gaps,
    Returns,
    delay_s,
)
from extproc.routing.views import Due
from extproc.terms import Endpoint, InstanceId

A, B = InstanceId("a"), InstanceId("b")
TIMES = st.floats(0, 100)


@given(st.lists(st.tuples(st.sampled_from([A, B]), TIMES), max_size=40), TIMES)
def test_what_is_due_are_all_that_have_not_come_soonest_first(
    told: list[tuple[InstanceId, float]], now: float
) -> None:
    returns = Returns()
    for turn, (instance, at) in enumerate(told):
        returns.expect(turn, instance, at)
    for each in (A, B):
        left = sorted(at - now for instance, at in told if instance == each and at >= now)
        assert returns.of(each, now) == [Due(at, 1.0) for at in left] or not left
    assert bool(returns) == any(at >= now for _, at in told)


def test_what_is_not_certain_is_spread_over_what_it_may_be() -> None:
    returns = Returns()
    returns.expect("turn", A, 20.0, spread_s=2.0)
    due = returns.of(A, 0.0)
    assert sum(one.share for one in due) == pytest.approx(1.0)
    mean = sum(one.at * one.share for one in due)
    assert mean == pytest.approx(20.0)
    assert sum((one.at - mean) ** 2 * one.share for one in due) ** 0.5 == pytest.approx(
        2.0, rel=0.01
    )


@pytest.mark.parametrize("spread_s", [0.0, 2.0])
def test_a_turn_that_has_come_or_is_told_of_anew_is_expected_no_more(spread_s: float) -> None:
    returns = Returns()
    for turn in ("one", "other"):
        returns.expect(turn, A, 20.0, spread_s)
    before = returns.of(A, 0.0)
    returns.expect("one", B, 30.0, spread_s)
    assert len(returns.of(A, 0.0)) == len(before) / 2
    assert returns.came("one")
    assert returns.came("other")
    assert not returns.came("other")
    assert not returns


def test_the_soonest_are_remembered_and_no_more_than_so_many() -> None:
    returns = Returns()
    for number in range(2 * MOST_DUE):
        returns.expect(number, A, float(2 * MOST_DUE - number))
    due = returns.of(A, 0.0)
    assert [one.at for one in due] == [float(at) for at in range(1, MOST_DUE + 1)]


@given(st.lists(st.tuples(TIMES, st.floats(0, 1)), max_size=20), TIMES, st.floats(0, 50))
def test_each_turn_waits_from_when_it_comes_or_the_prefill_begins_to_its_end(
    told: list[tuple[float, float]], begins: float, takes: float
) -> None:
    due = [Due(at, share) for at, share in sorted(told)]
    waits = sum(
        one.share * (begins + takes - max(one.at, begins)) for one in due if one.at < begins + takes
    )
    assert delay_s(due, begins, begins + takes) == pytest.approx(waits)


def view(instance: InstanceId, *due: float) -> InstanceView:
    return InstanceView(
        instance,
        Endpoint("10.0.0.1:8000"),
        cached_tokens=0,
        waiting_tokens=0.0,
        in_flight=0,
        prefill_rate=1_000.0,
        due=tuple(Due(at, 1.0) for at in due),
    )


def test_a_long_prompt_goes_where_nobody_is_about_to_come_home() -> None:
    pool = PoolView([view(A, 0.5), view(B, 9.0)], prefill_rate=1_000.0, utilisation=0.0)
    for tiebreak in range(4):
        assert PricedTTFT().rank(Turn(2_000, tiebreak), pool).best.instance == B
    ranking = PricedTTFT().rank(Turn(2_000, 0), pool)
    assert [score.price_s for score in ranking.scores] == [0.0, 1.5]


def regular(gap: float, count: int) -> float | None:
    gaps, now = Gaps(), 0.0
    for _ in range(count):
        now += 3.0
        gaps.ended("client", now)
        now += gap
        gaps.came("client", now)
    return gaps.ended("client", now + 3.0)


def test_who_comes_back_regularly_is_expected() -> None:
    assert regular(0.7, SEEN) == pytest.approx(0.7)
    assert regular(0.7, SEEN - 1) is None
    assert regular(LONGEST_S + 1, 9) is None


def test_who_comes_back_at_any_time_is_not() -> None:
    gaps, now = Gaps(), 0.0
    for number in range(20):
        assert gaps.ended("client", now) is None or number < SEEN
        now += 1.0 if number % 2 else 30.0
        gaps.came("client", now)
    assert gaps.ended("client", now) is None


def test_a_new_habit_is_learnt() -> None:
    gaps, now = Gaps(), 0.0
    for gap in [5.0] * 5 + [0.5] * 25:
        gaps.ended("client", now)
        now += gap
        gaps.came("client", now)
    told = gaps.ended("client", now)
    assert told == pytest.approx(0.5, abs=CERTAIN_S)


def test_what_follows_a_call_of_a_tool_is_learnt_by_itself() -> None:
    """A person's turns come at any time, those of the tools between them do not."""
    gaps, now = Gaps(), 1.0
    for number in range(4 * SEEN):
        calls = number % 4 != 3
        told = gaps.ended("client", now, calls)
        assert (told is not None) == (calls and number - number // 4 >= SEEN)
        assert told is None or told == pytest.approx(0.4)
        now += 0.4 if calls else 3.0 + 40.0 * (number % 8 == 3)
        gaps.came("client", now)


def test_clients_are_bounded() -> None:
    gaps = Gaps()
    for number in range(MOST_CLIENTS + 5):
        gaps.ended(number, 1.0)
    assert len(gaps._clients) == MOST_CLIENTS
