"""Turns that wait at Homing: who goes when."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import FlowControl, Ranking, Score, must_wait
from extproc.routing.flow_control import LEAD_S, MOST_WAITING
from extproc.terms import Endpoint, InstanceId


def ranking(wait_s: float, prefill_s: float = 1.0, wait_weight: float = 1.0) -> Ranking:
    one, there = InstanceId("one"), Endpoint("10.0.0.1:8000")
    return Ranking((Score(one, there, 0, wait_s, prefill_s, 0.0, wait_weight),))


@dataclass(frozen=True)
class Chosen:
    ranking: Ranking


def those_due(line: FlowControl[str], now: float, waits: dict[str, float]) -> list[str]:
    """waits: what each turn's best instance still has to do."""
    found = line.due(now, lambda name: Chosen(ranking(waits.get(name, 0.0))))
    return [waiting.item for waiting, _ in found]


def test_a_turn_waits_only_while_every_instance_is_busy_for_longer_than_the_way_there() -> None:
    assert must_wait(ranking(LEAD_S * 1.01))
    assert not must_wait(Ranking((*ranking(9.0).scores, *ranking(LEAD_S).scores)))
    assert not must_wait(ranking(LEAD_S))
    assert not must_wait(ranking(0.0))


def test_when_an_instance_is_free_the_shortest_prefill_goes_first() -> None:
    line = FlowControl[str](10.0, {})
    for name, prefill_s in (("long", 3.0), ("short", 0.1), ("middle", 1.0)):
        line.join(name, ranking(1.0, prefill_s), 0.0)
    assert those_due(line, 1.0, {}) == ["short", "middle", "long"]
    assert len(line) == 0


def test_work_that_is_less_urgent_counts_as_longer() -> None:
    line = FlowControl[str](10.0, {})
    line.join("batch", ranking(1.0, 0.2, wait_weight=0.1), 0.0)
    line.join("chat", ranking(1.0, 1.0), 0.0)
    assert those_due(line, 1.0, {}) == ["chat", "batch"]


def test_one_that_is_placed_makes_the_next_wait() -> None:
    line = FlowControl[str](10.0, {})
    for name in ("a", "b"):
        line.join(name, ranking(1.0), 0.0)
    placed: list[str] = []
    for waiting, _ in line.due(1.0, lambda _: Chosen(ranking(1.0 if placed else 0.0))):
        placed.append(waiting.item)
    assert placed == ["a"]
    assert len(line) == 1


def test_nobody_waits_longer_than_is_allowed_however_busy_all_are() -> None:
    line = FlowControl[str](2.0, {})
    line.join("a", ranking(60.0), 5.0)
    assert those_due(line, 6.999, {"a": 60.0}) == []
    assert line.wakes_at == 7.0
    assert those_due(line, 7.0, {"a": 60.0}) == ["a"]


def test_it_wakes_when_an_instance_is_predicted_to_be_free() -> None:
    line = FlowControl[str](10.0, {})
    assert line.wakes_at == float("inf")
    line.join("a", ranking(1.0), 5.0)
    assert line.wakes_at == 5.0 + 1.0 - LEAD_S
    assert those_due(line, 5.5, {"a": 3.0}) == []
    assert line.wakes_at == 5.5 + 3.0 - LEAD_S


def test_of_too_many_the_one_that_waited_longest_goes() -> None:
    line = FlowControl[str](100.0, {})
    names = [f"t{number}" for number in range(MOST_WAITING + 1)]
    for at, name in enumerate(names):
        line.join(name, ranking(50.0, prefill_s=100.0 - at), float(at))
    assert those_due(line, 40.0, dict.fromkeys(names, 50.0)) == ["t0"]
    assert len(line) == MOST_WAITING


def test_who_goes_away_is_not_served_and_may_go_twice() -> None:
    line = FlowControl[str](10.0, {})
    gone = line.join("gone", ranking(1.0), 0.0)
    line.leave(gone)
    line.leave(gone)
    assert those_due(line, 2.0, {}) == []


def test_who_waits_counts_as_waiting_for_those_after_it_and_for_nobody_else() -> None:
    planned: dict[InstanceId, float] = {}
    line = FlowControl[str](10.0, planned)
    for name, prefill_s in (("second", 2.0), ("first", 1.0), ("third", 3.0)):
        line.join(name, ranking(1.0, prefill_s), 0.0)
    seen = {}

    def choose(name: str) -> Chosen:
        seen[name] = planned.get(InstanceId("one"), 0.0)
        return Chosen(ranking(1.0, {"first": 1.0, "second": 2.0, "third": 3.0}[name]))

    assert not list(line.due(0.5, choose))
    assert seen == {"first": 0.0, "second": 1.0, "third": 3.0}
    assert not planned


@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 5), st.floats(0.01, 9)), max_size=60),
    st.floats(0.1, 5),
)
def test_everybody_goes_once_and_within_the_limit_after_the_last_look(
    turns: list[tuple[float, float, float]], most: float
) -> None:
    """Asked whenever it says, and at every arrival: late by no more than rounding."""
    line, went = FlowControl[int](most, {}), dict[int, float]()
    arrivals = sorted((at, number) for number, (at, _, _) in enumerate(turns))

    def look(now: float) -> None:
        for waiting, _ in line.due(now, lambda n: Chosen(ranking(turns[n][2], turns[n][1]))):
            assert waiting.item not in went
            went[waiting.item] = now

    for at, number in arrivals:
        while line.wakes_at < at:
            look(line.wakes_at)
        line.join(number, ranking(turns[number][2], turns[number][1]), at)
        look(at)
    while len(line):
        look(line.wakes_at)
    assert went.keys() == set(range(len(turns)))
    assert all(turns[n][0] <= now <= turns[n][0] + most + 1e-6 for n, now in went.items())
