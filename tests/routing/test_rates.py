"""What prefills take, learnt from what engines count."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import Rates, Speed
from extproc.routing.rates import CERTAIN, WARM_UP
from extproc.terms import InstanceId

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
PRIOR = Speed(16_000.0)

windows = st.lists(
    st.lists(st.integers(200, 20_000), min_size=1, max_size=6), min_size=30, max_size=60
)


@given(
    windows,
    st.floats(500, 200_000),
    st.floats(0, 0.2),
)
def test_the_speed_of_an_engine_that_keeps_to_one_is_found(
    sizes: list[list[int]], rate: float, overhead_s: float
) -> None:
    rates, true = Rates(PRIOR), Speed(rate, overhead_s)
    for _ in range(8):
        for window in sizes:
            seconds = sum(true.seconds(tokens) for tokens in window)
            rates.observe(A, seconds, len(window), sum(window))
    found = rates.of(A)
    for window in sizes:
        seconds = sum(true.seconds(tokens) for tokens in window)
        guess = sum(found.seconds(tokens) for tokens in window)
        assert guess == pytest.approx(seconds, rel=0.2, abs=0.05)


def test_rate_and_overhead_are_told_apart() -> None:
    rates, true = Rates(PRIOR), Speed(5_000.0, 0.03)
    for tokens in (100, 8_000, 2_000, 20, 16_000) * 20:
        rates.observe(A, true.seconds(tokens), 1, tokens)
    assert rates.of(A).rate == pytest.approx(5_000, rel=0.05)
    assert rates.of(A).overhead_s == pytest.approx(0.03, rel=0.2)


def test_an_engine_that_becomes_slower_is_noticed() -> None:
    rates = Rates(PRIOR)
    for speed in (Speed(20_000.0, 0.01), Speed(2_000.0, 0.01)):
        for tokens in (1_000, 4_000, 9_000) * 120:
            rates.observe(A, speed.seconds(tokens), 1, tokens)
    assert rates.of(A).rate == pytest.approx(2_000, rel=0.1)


def test_who_tells_nothing_is_taken_to_take_what_the_others_take_in_the_mean() -> None:
    rates = Rates(PRIOR)
    assert rates.of(C) == rates.mean == PRIOR
    speeds(rates, a=10_000.0, b=30_000.0)
    assert 1 / rates.mean.rate == pytest.approx((1 / 10_000 + 1 / 30_000) / 2, rel=0.05)
    assert rates.of(C) == rates.mean
    assert rates.of(A).rate < rates.of(C).rate < rates.of(B).rate


def test_an_instance_that_left_comes_back_unknown() -> None:
    rates = Rates(PRIOR)
    for _ in range(100):
        rates.observe(A, 10.0, 1, 8_000)
    rates.keep([B])
    assert rates.of(A) == PRIOR


def test_what_is_assumed_beforehand_counts_until_engines_have_told() -> None:
    rates = Rates(PRIOR)
    rates.assume(Speed(1_000.0))
    assert rates.of(A).rate == 1_000.0
    rates.observe(A, 0.001, 1, 16)
    assert rates.of(A).rate == pytest.approx(1_000, rel=0.3)


nonsense = st.sampled_from([0.0, -1.0, nan, inf, -inf, 1e300, 5e-324])
numbers = nonsense | st.floats(0, 1e6)


@given(st.lists(st.tuples(numbers, numbers, numbers, st.none() | st.floats(0, 100)), max_size=40))
def test_no_counter_makes_a_speed_that_cannot_be(
    counted: list[tuple[float, float, float, float | None]],
) -> None:
    rates = Rates(PRIOR)
    for seconds, requests, tokens, now in counted:
        rates.observe(A, seconds, requests, tokens, now)
        for speed in (rates.of(A), rates.mean):
            assert 1.0 <= speed.rate <= 1e7
            assert 0.0 <= speed.overhead_s <= 1.0


@given(st.integers(1, 8), st.floats(4_000, 50_000), st.floats(0.5, 3.0))
def test_of_a_busy_engine_that_prefills_in_batches_the_rate_is_what_it_gets_done(
    batch: int, rate: float, batch_s: float
) -> None:
    """Each prompt of a batch counts the batch's time, and there is always another batch."""
    rates, tokens = Rates(PRIOR), rate * batch_s
    for tick in range(1, 400):
        rates.observe(A, batch * batch_s, batch, tokens, now=tick * batch_s)
    found = rates.of(A).seconds(tokens / batch) * batch
    assert found == pytest.approx(batch_s, rel=0.1)


def test_a_prefill_that_is_counted_only_when_its_answer_ends_may_be_as_long_as_it_was() -> None:
    rates, true = Rates(PRIOR), Speed(2_000.0)
    for tick in range(1, 100):
        for tokens in (6_000, 8_000):
            rates.observe(A, true.seconds(tokens), 1, tokens, now=tick * 20.0 + tokens / 1e5)
    assert rates.of(A).rate == pytest.approx(2_000, rel=0.1)


def speeds(rates: Rates, now: float = 0.0, **rate: float) -> None:
    """Let the engines of these names be heard of at these rates, often enough to be believed."""
    for _ in range(60):
        for name, each in rate.items():
            for tokens in (500, 4_000):
                seconds = Speed(each).seconds(tokens)
                now += seconds
                rates.observe(InstanceId(name), seconds, 1, tokens, now)


def test_the_first_requests_of_an_engine_say_nothing_of_its_speed() -> None:
    """It compiles: a second and more each, and is then as fast as the other."""
    rates = Rates(PRIOR)
    for _ in range(8):
        rates.observe(A, 5.0, 1, 1_000)
    assert rates.of(A) == PRIOR
    speeds(rates, a=10_000.0, b=10_000.0)
    assert rates.of(A).rate == pytest.approx(10_000, rel=0.05)


def test_an_engine_that_is_thought_slow_is_tried_again_after_a_while() -> None:
    rates = Rates(PRIOR)
    speeds(rates, a=20_000.0, b=2_000.0)
    assert rates.of(B).rate < rates.of(A).rate / 5
    speeds(rates, now=1_000.0, a=20_000.0)
    assert rates.of(B) == rates.mean


def test_engines_that_are_alike_stay_so_whatever_each_is_given_to_do() -> None:
    """A stall of a fifth of a second among short prompts here, and only long ones there."""
    rates, true = Rates(PRIOR), Speed(30_000.0, 0.02)
    for step in range(200):
        now = 10.0 + step
        rates.observe(A, true.seconds(200) + 0.2 * (step == 50), 1, 200, now)
        rates.observe(B, true.seconds(3_000) * 1.15, 1, 3_000, now)
        if step > WARM_UP + CERTAIN:
            assert rates.of(A) == rates.of(B) == rates.mean


def test_an_engine_that_has_stalled_once_is_not_slow() -> None:
    rates, true = Rates(PRIOR), Speed(30_000.0, 0.02)
    for step in range(60):
        for name in (A, B):
            rates.observe(name, true.seconds(3_000), 1, 3_000, float(step))
    rates.observe(B, true.seconds(3_000) + 5, 1, 3_000, 60.0)
    assert rates.of(B) == rates.mean
    assert rates.mean.seconds(3_000) < 1.5 * true.seconds(3_000)


def test_what_a_request_takes_without_any_tokens_is_learnt_at_last() -> None:
    rates, true = Rates(PRIOR), Speed(16_000.0, 0.02)
    for step in range(400):
        tokens = 16_000 if step < 60 else 0
        seconds = tokens / PRIOR.rate if tokens else true.overhead_s
        rates.observe(A, seconds, 1, tokens, 2.0 * step)
        assert step != 59 or rates.mean.overhead_s < 0.001
    assert rates.mean.overhead_s == pytest.approx(0.02, rel=0.1)


def test_one_that_goes_on_being_slow_is() -> None:
    rates, true = Rates(PRIOR), Speed(30_000.0, 0.02)
    for step in range(60):
        for name in (A, B):
            rates.observe(name, true.seconds(3_000), 1, 3_000, float(step))
    for step in range(60, 80):
        rates.observe(B, 10 * true.seconds(3_000), 1, 3_000, 2.0 * step)
        rates.observe(A, true.seconds(3_000), 1, 3_000, 2.0 * step)
    assert rates.of(B).seconds(3_000) > 3 * rates.of(A).seconds(3_000)


def test_in_a_pool_with_little_to_do_engines_count_as_alike() -> None:
    """One of the two takes three times as long, and neither has worked for three seconds yet."""
    rates, true = Rates(PRIOR), Speed(30_000.0, 0.005)
    for step in range(100):
        rates.observe(A, true.seconds(150), 1, 150, float(step))
        rates.observe(B, 3 * true.seconds(150), 1, 150, float(step))
        assert rates.of(A) == rates.of(B) == rates.mean


def test_an_engine_that_was_started_again_warms_up_again() -> None:
    rates, true = Rates(PRIOR), Speed(30_000.0, 0.02)
    for step in range(60):
        for name in (A, B):
            rates.observe(name, true.seconds(3_000), 1, 3_000, float(step))
    before = rates.mean
    rates.restarted(B)
    for step in range(WARM_UP):
        rates.observe(B, 3.0, 1, 3_000, 61.0 + 4 * step)
    assert rates.mean == before
    assert rates.of(B) == rates.mean


def test_engines_that_are_nearly_alike_count_as_alike() -> None:
    rates = Rates(PRIOR)
    speeds(rates, a=10_000.0, b=12_000.0)
    assert rates.of(A) == rates.of(B) == rates.mean
