"""What the replicas of a pool have in flight together, as each of them reckons it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import Load, LoadLedger
from extproc.routing.load import FRESH_S, STALE_S
from extproc.terms import InstanceId

A, B = InstanceId("a"), InstanceId("b")
RATE = 100.0


def rate(_: InstanceId) -> float:
    return RATE


def tell(ledgers: Sequence[LoadLedger], now: float) -> None:
    """Every replica reports to every other."""
    reports = [ledger.own(now, rate) for ledger in ledgers]
    for reader, ledger in enumerate(ledgers):
        for writer, report in enumerate(reports):
            if writer != reader:
                ledger.report(f"replica-{writer}", report, now, rate)


def test_what_another_replica_has_in_flight_counts_as_if_it_were_ones_own() -> None:
    ledger = LoadLedger()
    ledger.start(A, 100.0, now=0.0, rate=RATE)
    ledger.report("other", {A: Load(200.0, 2), B: Load(50.0, 1)}, now=0.0, rate=rate)
    assert ledger.of(A, 0.0, RATE) == (300.0, 3)
    assert ledger.of(B, 0.0, RATE) == (50.0, 1)
    assert ledger.own(0.0, rate) == {A: (100.0, 1)}
    assert ledger.in_flight == 1


def test_a_report_stands_in_place_of_the_one_before_it() -> None:
    ledger = LoadLedger()
    ledger.report("other", {A: Load(200.0, 2), B: Load(50.0, 1)}, now=0.0, rate=rate)
    ledger.report("other", {B: Load(10.0, 1)}, now=0.0, rate=rate)
    assert ledger.of(A, 0.0, RATE) == (0.0, 0)
    assert ledger.of(B, 0.0, RATE) == (10.0, 1)
    assert ledger.elsewhere(0.0) == 1


def test_the_load_of_a_replica_that_has_gone_goes_with_it() -> None:
    ledger = LoadLedger()
    ledger.start(A, 100.0, now=0.0, rate=RATE)
    ledger.report("one", {A: Load(200.0, 2)}, now=0.0, rate=rate)
    ledger.report("two", {A: Load(30.0, 1)}, now=0.0, rate=rate)
    ledger.forget("one")
    ledger.forget("one")
    assert ledger.of(A, 0.0, RATE) == (130.0, 2)
    assert ledger.elsewhere(0.0) == 1
    ledger.forget("two")
    assert ledger.of(A, 0.0, RATE) == (100.0, 1)


def test_all_replicas_prefills_share_the_instances_one_rate() -> None:
    ledger = LoadLedger()
    ledger.start(A, 100.0, now=0.0, rate=RATE)
    ledger.report("other", {A: Load(300.0, 3)}, now=0.0, rate=rate)
    assert ledger.of(A, 1.0, RATE) == (pytest.approx(300.0), 4)
    assert ledger.own(1.0, rate)[A].waiting == pytest.approx(75.0)
    assert ledger.of(A, 4.0, RATE) == (0.0, 4)


def test_a_replica_that_goes_after_some_of_its_prefills_takes_only_the_rest() -> None:
    ledger = LoadLedger()
    ledger.report("one", {A: Load(100.0, 1)}, now=0.0, rate=rate)
    ledger.report("two", {A: Load(300.0, 1)}, now=0.0, rate=rate)
    assert ledger.of(A, 2.0, RATE).waiting == pytest.approx(200.0)
    ledger.forget("one")
    assert ledger.of(A, 2.0, RATE) == (pytest.approx(150.0), 1)


def test_a_report_from_before_an_idle_moment_has_no_tokens_left_to_take_away() -> None:
    ledger = LoadLedger()
    ledger.report("one", {A: Load(100.0, 1)}, now=0.0, rate=rate)
    assert ledger.of(A, 5.0, RATE) == (0.0, 1)
    ledger.report("two", {A: Load(40.0, 1)}, now=5.0, rate=rate)
    ledger.forget("one")
    assert ledger.of(A, 5.0, RATE) == (40.0, 1)


def test_reports_fade_when_the_way_they_come_by_falls_silent_and_return_with_it() -> None:
    ledger = LoadLedger()
    ledger.report("other", {A: Load(1e6, 8)}, now=0.0, rate=lambda _: 0.0)
    assert ledger.of(A, FRESH_S, 0.0) == (1e6, 8)
    assert ledger.of(A, (FRESH_S + STALE_S) / 2, 0.0) == (5e5, 4)
    assert ledger.elsewhere((FRESH_S + STALE_S) / 2) == 4
    assert ledger.of(A, STALE_S, 0.0) == (0.0, 0)
    ledger.heard(STALE_S + 1)
    assert ledger.of(A, STALE_S + 2, 0.0) == (1e6, 8)


def test_own_load_never_fades() -> None:
    ledger = LoadLedger()
    ledger.start(A, 100.0, now=0.0, rate=0.0)
    ledger.report("other", {A: Load(100.0, 1)}, now=0.0, rate=lambda _: 0.0)
    assert ledger.of(A, 10 * STALE_S, 0.0) == (100.0, 1)


def test_nonsense_in_a_report_is_no_load() -> None:
    ledger = LoadLedger()
    ledger.report("other", {A: Load(-5.0, 1), B: Load(10.0, -1)}, now=0.0, rate=rate)
    assert ledger.of(A, 0.0, RATE) == (0.0, 1)
    assert ledger.of(B, 0.0, RATE) == (0.0, 0)


def test_starts_and_ends_are_changes_and_time_is_none() -> None:
    ledger = LoadLedger()
    ticket = ledger.start(A, 100.0, now=0.0, rate=RATE)
    ledger.of(A, 0.5, RATE)
    ledger.report("other", {A: Load(5.0, 1)}, now=0.5, rate=rate)
    assert ledger.changes == 1
    ledger.end(ticket)
    ledger.end(ticket)
    assert ledger.changes == 2


starts = st.tuples(st.integers(0, 2), st.sampled_from([A, B]), st.floats(0, 500), st.floats(0, 3))


@given(st.lists(starts, max_size=30))
def test_replicas_that_tell_each_other_everything_see_what_one_alone_would(
    steps: list[tuple[int, InstanceId, float, float]],
) -> None:
    alone, together = LoadLedger(), [LoadLedger() for _ in range(3)]
    now = 0.0
    for replica, instance, uncached, pause in steps:
        now += pause
        tell(together, now)
        alone.start(instance, uncached, now, RATE)
        together[replica].start(instance, uncached, now, RATE)
        tell(together, now)
        for seen in (A, B):
            waiting, in_flight = alone.of(seen, now, RATE)
            for ledger in together:
                assert ledger.of(seen, now, RATE) == (
                    pytest.approx(waiting, abs=1e-5, rel=1e-6),
                    in_flight,
                )


@given(st.lists(st.tuples(starts, st.sampled_from(["start", "end", "tell", "leave"]))))
def test_every_load_returns_to_zero_when_all_have_ended_and_left(
    steps: list[tuple[tuple[int, InstanceId, float, float], str]],
) -> None:
    ledgers = [LoadLedger() for _ in range(3)]
    tickets = []
    now = 0.0
    for (replica, instance, uncached, pause), what in steps:
        now += pause
        if what == "start":
            ledger = ledgers[replica]
            tickets.append((ledger, ledger.start(instance, uncached, now, RATE)))
        elif what == "end" and tickets:
            ledger, ticket = tickets.pop(0)
            ledger.end(ticket)
        elif what == "tell":
            tell(ledgers, now)
        elif what == "leave":
            for other in ledgers:
                other.forget(f"replica-{replica}")
        for ledger in ledgers:
            for seen in (A, B):
                waiting, in_flight = ledger.of(seen, now, RATE)
                assert waiting >= -1e-6
                assert in_flight >= 0
    for ledger, ticket in tickets:
        ledger.end(ticket)
    tell(ledgers, now)
    for ledger in ledgers:
        assert ledger.of(A, now, RATE) == ledger.of(B, now, RATE) == (0.0, 0)
        assert ledger.elsewhere(now) == 0
        assert ledger._queues == {}
