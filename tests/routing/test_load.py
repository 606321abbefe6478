"""The ledger of requests in flight, against a queue that is stepped by hand."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import Load, LoadLedger, Utilisation
from extproc.terms import InstanceId

A, B = InstanceId("a"), InstanceId("b")
RATE = 100.0


def test_uncached_tokens_wait_until_their_prefill_is_predicted_to_end() -> None:
    ledger = LoadLedger()
    ledger.start(A, 200.0, now=0.0, rate=RATE)
    ledger.start(A, 100.0, now=0.0, rate=RATE)
    assert ledger.of(A, 0.0, RATE) == (300.0, 2)
    assert ledger.of(A, 1.0, RATE) == (200.0, 2)
    assert ledger.of(A, 3.0, RATE) == (0.0, 2)
    assert ledger.of(B, 3.0, RATE) == (0.0, 0)


def test_an_answer_that_ends_early_takes_its_waiting_tokens_along() -> None:
    ledger = LoadLedger()
    first = ledger.start(A, 200.0, now=0.0, rate=RATE)
    ledger.start(A, 100.0, now=0.0, rate=RATE)
    ledger.of(A, 1.0, RATE)
    ledger.end(first)
    assert ledger.of(A, 1.0, RATE) == (100.0, 1)


def test_a_ticket_ends_once() -> None:
    ledger = LoadLedger()
    ticket = ledger.start(A, 10.0, now=0.0, rate=RATE)
    other = ledger.start(A, 0.0, now=0.0, rate=RATE)
    ledger.end(ticket)
    ledger.end(ticket)
    assert ledger.of(A, 0.0, RATE) == (0.0, 1)
    ledger.end(other)
    assert ledger.in_flight == 0


def test_an_idle_time_does_not_serve_what_comes_after_it() -> None:
    ledger = LoadLedger()
    kept = ledger.start(A, 0.0, now=0.0, rate=RATE)
    ledger.start(A, 100.0, now=50.0, rate=RATE)
    assert ledger.of(A, 50.0, RATE) == (100.0, 2)
    ledger.end(kept)


def test_a_ten_minute_answer_is_in_flight_to_its_end() -> None:
    ledger = LoadLedger()
    ticket = ledger.start(A, 100.0, now=0.0, rate=RATE)
    assert ledger.of(A, 600.0, RATE) == (0.0, 1)
    ledger.end(ticket)
    assert ledger.of(A, 600.0, RATE) == (0.0, 0)


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 3), st.booleans()), max_size=30))
def test_counts_never_go_negative_and_return_to_zero(
    steps: list[tuple[float, float, bool]],
) -> None:
    ledger, now, open_tickets = LoadLedger(), 0.0, []
    for uncached, pause, end_one in steps:
        now += pause
        open_tickets.append(ledger.start(A, uncached, now, RATE))
        if end_one:
            ledger.end(open_tickets.pop(0))
        waiting, in_flight = ledger.of(A, now, RATE)
        assert waiting >= -1e-6
        assert in_flight == len(open_tickets)
    for ticket in open_tickets:
        ledger.end(ticket)
    assert ledger.of(A, now, RATE) == (0.0, 0)
    assert ledger.in_flight == 0


def test_utilisation_follows_the_share_of_prefill_time_assigned() -> None:
    pool = Utilisation(now=0.0)
    pool.assign(10.0)
    assert pool.at(9.9, instances=2) == 0.0
    assert pool.at(10.0, instances=2) == 0.3 * 0.5
    for window in range(2, 40):
        pool.assign(1000.0)
        value = pool.at(window * 10.0, instances=2)
    assert 0.9 < value <= 0.95


def test_windows_without_requests_count_as_idle() -> None:
    pool = Utilisation(now=0.0)
    pool.assign(1000.0)
    busy = pool.at(10.0, instances=1)
    assert pool.at(110.0, instances=1) < busy * 0.1


def test_queued_are_those_whose_prefill_is_not_predicted_to_have_ended() -> None:
    ledger = LoadLedger()
    for tokens in (100.0, 100.0, 100.0):
        ledger.start(A, tokens, now=0.0, rate=100.0)
    assert [ledger.queued_at(A, now, 100.0) for now in (0.0, 0.5, 1.5, 2.5, 3.5)] == [3, 3, 2, 1, 0]
    assert ledger.queued_at(InstanceId("other"), 0.0, 100.0) == 0


def test_a_prefill_took_the_time_between_its_first_token_and_the_one_before() -> None:
    ledger = LoadLedger()
    first, second = (ledger.start(A, 100.0, at, RATE) for at in (0.0, 1.0))
    assert ledger.computed(first, 4.0, RATE) == 4.0
    assert ledger.computed(second, 6.0, RATE) == 2.0
    third = ledger.start(A, 100.0, 9.0, RATE)
    assert ledger.computed(third, 10.0, RATE) == 1.0
    assert ledger.computed(third, 11.0, RATE) is None


def test_what_a_prefill_took_is_not_known_where_another_may_have_been_between() -> None:
    ledger = LoadLedger()
    passed, late, seen = (ledger.start(A, 100.0, 0.0, RATE) for _ in range(3))
    assert ledger.computed(late, 4.0, RATE) is None
    assert ledger.computed(passed, 4.5, RATE) is None
    ledger.report("other", {A: Load(50.0, 1)}, 5.0, lambda _: RATE)
    assert ledger.computed(seen, 6.0, RATE) is None


def test_one_whose_client_went_away_is_not_waited_for() -> None:
    ledger = LoadLedger()
    gone, seen = (ledger.start(A, 100.0, 0.0, RATE) for _ in range(2))
    ledger.end(gone)
    assert ledger.computed(seen, 2.0, RATE) == 2.0
    ledger.end(seen)
    assert ledger.computed(seen, 3.0, RATE) is None
