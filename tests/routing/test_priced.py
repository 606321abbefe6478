"""The default policy: cost(i) = wait + u/r + u/R · ρ/(1-ρ)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import InstanceView, PoolView, PricedTTFT, Ranking, Turn
from extproc.terms import Endpoint, InstanceId

RATE = 10_000.0


def instance(name: str, **known: float) -> InstanceView:
    view = InstanceView(
        instance=InstanceId(name),
        endpoint=Endpoint(f"10.0.0.{ord(name[0])}:8000"),
        cached_tokens=0,
        waiting_tokens=0.0,
        in_flight=0,
        prefill_rate=RATE,
    )
    return replace(view, **known)


def rank(
    *views: InstanceView, tokens: int | None = 1000, load: float = 0.0, tie: int = 0
) -> Ranking:
    return PricedTTFT().rank(Turn(tokens, tie), PoolView(views, RATE, load))


def order(ranking: Ranking) -> str:
    return "".join(score.instance for score in ranking.scores)


def test_the_holder_of_the_prefix_wins_an_idle_pool() -> None:
    ranking = rank(
        instance("a"), instance("b", cached_tokens=900), instance("c", cached_tokens=400)
    )
    assert order(ranking) == "bca"
    assert ranking.why == "home"


def test_a_prefix_on_a_slower_tier_is_worth_less_than_one_on_the_gpu_and_more_than_none() -> None:
    gpu = instance("a", cached_tokens=900)
    cpu = instance("b", cached_tokens=900, reload_tokens=225.0)
    ranking = rank(instance("c"), cpu, gpu)
    assert order(ranking) == "abc"
    assert [round(score.prefill_s * RATE) for score in ranking.scores] == [100, 325, 1000]
    assert ranking.scores[1].cached_tokens == 900
    less = instance("a", cached_tokens=600)
    assert rank(less, cpu).best.instance == "b"


def test_a_holder_that_is_busy_for_longer_than_it_saves_loses() -> None:
    busy = instance("a", cached_tokens=900, waiting_tokens=1000.0)
    ranking = rank(busy, instance("b"))
    assert ranking.best.instance == "b"
    assert ranking.why == "moved"


def test_a_holder_that_is_busy_for_less_than_it_saves_wins() -> None:
    busy = instance("a", cached_tokens=900, waiting_tokens=800.0)
    assert rank(busy, instance("b")).best.instance == "a"


def test_the_busier_the_pool_the_more_locality_counts() -> None:
    views = instance("a", cached_tokens=900, waiting_tokens=1000.0), instance("b")
    assert rank(*views, load=0.0).best.instance == "b"
    assert rank(*views, load=0.5).best.instance == "a"


def test_the_costs_are_those_of_the_formula_in_seconds() -> None:
    view = instance("a", cached_tokens=400, waiting_tokens=500.0, prefill_rate=2_000.0)
    score = rank(view, load=0.75).best
    assert score.wait_s == pytest.approx(500 / 2_000)
    assert score.prefill_s == pytest.approx(600 / 2_000)
    assert score.price_s == pytest.approx(600 / RATE * 3)
    assert score.cost_s == pytest.approx(score.wait_s + score.prefill_s + score.price_s)


def test_equal_costs_go_to_the_least_in_flight() -> None:
    assert rank(instance("a", in_flight=2), instance("b", in_flight=1)).best.instance == "b"


def test_equal_instances_take_turns() -> None:
    views = [instance(name) for name in "abcd"]
    assert {rank(*views, tie=turn).best.instance for turn in range(4)} == set("abcd")


def test_a_prompt_of_unknown_tokens_goes_where_the_wait_is_shortest() -> None:
    views = instance("a", waiting_tokens=100.0), instance("b", waiting_tokens=50.0)
    assert order(rank(*views, tokens=None)) == "ba"


def test_a_prompt_that_nobody_knows_is_new() -> None:
    assert rank(instance("a"), instance("b")).why == "new"


@given(
    st.lists(
        st.builds(
            instance,
            st.sampled_from("abcdefgh"),
            cached_tokens=st.integers(0, 2000),
            waiting_tokens=st.floats(0, 1e6),
            in_flight=st.integers(0, 100),
            prefill_rate=st.floats(1, 1e6),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda view: view.instance,
    ),
    st.integers(0, 1000),
    st.floats(0, 0.95),
)
def test_every_instance_is_ranked_once_and_the_best_costs_least(
    views: list[InstanceView], tokens: int, load: float
) -> None:
    ranking = rank(*views, tokens=tokens, load=load)
    assert sorted(order(ranking)) == sorted(view.instance for view in views)
    costs = [score.cost_s for score in ranking.scores]
    assert costs == sorted(costs)
