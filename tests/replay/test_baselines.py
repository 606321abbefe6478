"""The rule of each published policy, on views made by hand."""

from dataclasses import replace

import pytest

from extproc.replay.baselines import BASELINES
from extproc.replay.router import LabTurn, LabView
from extproc.routing import PoolView, Ranking
from extproc.terms import Endpoint, InstanceId

RATE = 1_000.0


def view(name: str, **known: float) -> LabView:
    plain = LabView(InstanceId(name), Endpoint(f"{name}:1"), 0, 0.0, 0, RATE)
    return replace(plain, **{"capacity_tokens": 100_000, **known})


def rank(
    policy: str, *views: LabView, tokens: int = 1_000, at: float = 0.0, conversation: int = 0
) -> Ranking:
    turn = LabTurn(tokens, 1, at=at, conversation=conversation)
    return BASELINES[policy]().rank(turn, PoolView(views, RATE, 0.0))


def best(policy: str, *views: LabView, tokens: int = 1_000) -> str:
    return rank(policy, *views, tokens=tokens).best.instance


@pytest.mark.parametrize("policy", BASELINES)
def test_every_instance_is_ranked_once(policy: str) -> None:
    views = [view(name, cached_tokens=100 * n) for n, name in enumerate("abcd")]
    assert sorted(s.instance for s in rank(policy, *views).scores) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("policy", ["least-tokens", "least-requests", "mooncake-min-ttft"])
def test_of_two_that_hold_nothing_the_idle_one_is_best(policy: str) -> None:
    busy = view("a", waiting_tokens=500.0, in_flight=3)
    assert best(policy, busy, view("b")) == "b"


def test_llm_d_weighs_prefix_queue_and_cache() -> None:
    holder = view("a", cached_tokens=1_000, queued=4)
    assert best("llm-d-default", holder, view("b")) == "a"  # 3 against 2
    half = view("a", cached_tokens=500, queued=4)
    assert best("llm-d-default", half, view("b")) == "b"  # 1.5 against 2
    full = view("a", cached_tokens=500, active_tokens=100_000.0)
    assert best("llm-d-default", full, view("b")) == "b"  # 1.5 against 2 of the cache


def test_llm_d_keeps_to_who_has_four_fifths_until_it_takes_five_seconds_more() -> None:
    sticky = view("a", cached_tokens=800, waiting_tokens=5_000.0)
    assert best("llm-d-sticky", sticky, view("b")) == "a"
    later = view("a", cached_tokens=800, waiting_tokens=6_000.0)
    assert best("llm-d-sticky", later, view("b")) == "b"
    less = view("a", cached_tokens=700, waiting_tokens=1_000.0)
    assert best("llm-d-sticky", less, view("b")) == "b"


def test_dynamo_adds_what_is_to_prefill_and_what_is_active() -> None:
    holder = view("a", cached_tokens=600, active_tokens=500.0)
    assert best("dynamo", holder, view("b")) == "a"
    assert best("dynamo", replace(holder, active_tokens=700.0), view("b")) == "b"


def test_gorgo_counts_half_of_the_prompts_that_are_queued() -> None:
    holder = view("a", cached_tokens=600, queued_tokens=1_100)
    assert best("gorgo", holder, view("b")) == "a"
    assert best("gorgo", replace(holder, queued_tokens=1_300), view("b")) == "b"


def test_preble_exploits_what_is_most_of_the_prompt_and_explores_otherwise() -> None:
    busy = {"waiting_tokens": 900.0}
    assert best("preble-e2", view("a", cached_tokens=600, **busy), view("b")) == "a"
    assert best("preble-e2", view("a", cached_tokens=400, **busy), view("b")) == "b"


def test_preble_leaves_a_holder_that_was_given_twice_as_much_of_late() -> None:
    policy = BASELINES["preble-e2"]()
    holder, other = view("a", cached_tokens=9_000), view("b", cached_tokens=8_999)
    picks = [
        policy.rank(LabTurn(12_000, 0, at=n / 10), PoolView([holder, other], RATE, 0.0))
        for n in range(12)
    ]
    assert picks[0].best.instance == "a"
    assert "b" in {ranking.best.instance for ranking in picks}


def test_dualmap_keeps_a_conversation_to_two_instances() -> None:
    views = [view(name) for name in "abcdefgh"]
    seen = set()
    for busy in range(8):
        loads = [replace(v, waiting_tokens=6_000.0 * (n == busy)) for n, v in enumerate(views)]
        seen.add(rank("dualmap", *loads, conversation=7).best.instance)
    assert len(seen) == 2


def test_a_session_stays_where_its_first_turn_found_the_least_load() -> None:
    policy = BASELINES["session-least-loaded"]()
    first = [view("a", waiting_tokens=9.0), view("b")]
    later = [view("a"), view("b", waiting_tokens=9e9)]
    turns = [LabTurn(1_000, 0, conversation=5)] * 2
    picks = [
        policy.rank(turn, PoolView(views, RATE, 0.0)).best.instance
        for turn, views in zip(turns, (first, later), strict=True)
    ]
    assert picks == ["b", "b"]
