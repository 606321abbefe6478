"""Who counts as alive, and what holds of a load that an engine told. Clocks are arguments."""

from collections.abc import Sequence

import pytest

from extproc.engines import Conditions, Instance, State
from extproc.engines.conditions import LATE_S, MOST_FAILURES, RETRY_S
from extproc.engines.metrics import Reading
from extproc.routing import Load, LoadLedger
from extproc.terms import Endpoint, InstanceId

FRESH_S = 2.0
IDLE = Reading(running=0, waiting=0)


def instance(name: str, state: State = State.READY, **more: object) -> Instance:
    defaults = {"metrics": f"http://10.0.0.1/{name}"}
    return Instance(
        InstanceId(name), Endpoint(f"10.0.0.1:{ord(name[0])}"), state, **defaults | more
    )  # type: ignore[arg-type]


A, B, C = instance("a"), instance("b"), instance("c")


def listed(*instances: Instance) -> Conditions:
    conditions = Conditions()
    conditions.keep(instances or (A, B, C))
    return conditions


def names(instances: Sequence[Instance]) -> str:
    return "".join(one.id for one in instances)


def usable(conditions: Conditions, *instances: Instance, now: float = 0.0) -> str:
    return names(conditions.usable(instances or (A, B, C), now))


def told(
    conditions: Conditions,
    one: Instance,
    reading: Reading | None = IDLE,
    ours: int = 0,
    now: float = 0.0,
    queued: int = 0,
) -> bool:
    return conditions.scraped(one.id, reading, ours, queued, now, FRESH_S)


class TestAlive:
    def test_an_instance_that_nobody_has_looked_at_is(self) -> None:
        assert usable(listed()) == "abc"

    def test_two_failed_scrapes_are_not_enough(self) -> None:
        conditions = listed()
        for _ in range(MOST_FAILURES - 1):
            conditions.unanswered(A.id, refused=True, now=0)
        assert usable(conditions) == "abc"

    def test_three_in_a_row_are(self) -> None:
        conditions = listed()
        for _ in range(MOST_FAILURES):
            conditions.unanswered(A.id, refused=False, now=0)
        assert usable(conditions) == "bc"

    def test_three_that_are_not_in_a_row_are_not(self) -> None:
        conditions = listed()
        for _ in range(MOST_FAILURES * 2):
            conditions.unanswered(A.id, refused=True, now=0)
            conditions.unanswered(A.id, refused=True, now=0)
            told(conditions, A)
        assert usable(conditions) == "abc"

    def test_one_routed_request_that_could_not_connect_is_enough(self) -> None:
        conditions = listed()
        conditions.unreachable(B.endpoint, now=0)
        assert usable(conditions) == "ac"

    @pytest.mark.parametrize("reading", [Reading(running=9, waiting=9), None], ids=["200", "404"])
    def test_any_answer_to_a_scrape_brings_it_back(self, reading: Reading | None) -> None:
        conditions = listed()
        conditions.unreachable(B.endpoint, now=0)
        told(conditions, B, reading)
        assert usable(conditions) == "abc"

    def test_an_answer_to_a_routed_request_brings_it_back(self) -> None:
        conditions = listed()
        conditions.unreachable(B.endpoint, now=0)
        conditions.answered(B.endpoint)
        assert usable(conditions) == "abc"

    def test_ranks_behind_one_port_share_its_fate(self) -> None:
        ranks = [instance("a", rank=0), Instance(InstanceId("b"), A.endpoint, rank=1)]
        conditions = listed(*ranks, C)
        conditions.unreachable(A.endpoint, now=0)
        assert usable(conditions, *ranks, C) == "c"

    def test_where_all_are_gone_all_are_tried(self) -> None:
        conditions = listed()
        for one in (A, B, C):
            conditions.unreachable(one.endpoint, now=0)
        assert usable(conditions) == "abc"

    def test_it_is_asked_of_those_that_the_hint_leaves(self) -> None:
        conditions = listed()
        conditions.unreachable(A.endpoint, now=0)
        assert usable(conditions, A) == "a"
        assert usable(conditions, A, B) == "b"

    def test_one_without_metrics_is_tried_again_after_a_while(self) -> None:
        blind = instance("a", metrics=None)
        conditions = listed(blind, B)
        conditions.unreachable(blind.endpoint, now=100)
        assert usable(conditions, blind, B, now=100 + RETRY_S / 2) == "b"
        assert usable(conditions, blind, B, now=100 + RETRY_S) == "ab"

    def test_one_that_is_scraped_is_not_it_would_have_answered(self) -> None:
        conditions = listed()
        conditions.unreachable(A.endpoint, now=0)
        assert usable(conditions, now=1e6) == "bc"

    def test_one_that_left_and_came_back_elsewhere_begins_anew(self) -> None:
        conditions = listed()
        conditions.unreachable(A.endpoint, now=0)
        moved = Instance(A.id, Endpoint("10.9.9.9:1"))
        conditions.keep([moved, B, C])
        assert usable(conditions, moved, B, C) == "abc"

    def test_one_that_stays_listed_stays_as_it_is(self) -> None:
        conditions = listed()
        conditions.unreachable(A.endpoint, now=0)
        conditions.keep([instance("a", State.DRAINING), B])
        conditions.keep([A, B])
        assert usable(conditions, A, B) == "b"

    def test_news_of_one_that_has_left_are_nothing(self) -> None:
        conditions = listed(A)
        assert not told(conditions, B)
        conditions.unanswered(B.id, refused=True, now=0)
        conditions.unreachable(B.endpoint, now=0)
        conditions.answered(B.endpoint)
        assert usable(conditions, A) == "a"


class TestStates:
    @pytest.mark.parametrize("state", [State.STARTING, State.DRAINING])
    def test_only_ready_ones_get_requests(self, state: State) -> None:
        other = instance("a", state)
        assert usable(listed(other, B), other, B) == "b"

    def test_where_none_is_ready_those_that_answer_do(self) -> None:
        starting, draining = instance("a", State.STARTING), instance("b", State.DRAINING)
        conditions = listed(starting, draining, C)
        conditions.unreachable(C.endpoint, now=0)
        assert usable(conditions, starting, draining, C) == "ab"

    def test_a_change_of_state_counts_at_once(self) -> None:
        conditions = listed(A, B)
        conditions.keep([instance("a", State.DRAINING), B])
        assert usable(conditions, A, B) == "b"
        conditions.keep([A, B])
        assert usable(conditions, A, B) == "ab"

    def test_an_engine_that_sleeps_gets_none_until_it_wakes(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=0, waiting=0, asleep=True))
        assert usable(conditions) == "bc"
        told(conditions, A)
        assert usable(conditions) == "abc"


class TestPrefills:
    """What an engine has prefilled between two looks."""

    def prefilled(self, *readings: Reading) -> list[tuple[float, ...]]:
        conditions = listed()
        seen: list[tuple[float, ...]] = []
        conditions.prefilled = lambda _, *counted: seen.append(counted)
        for reading in readings:
            told(conditions, A, reading)
        return seen

    def reading(self, requests: float, ms: float, tokens: float, started: float = 1.0) -> Reading:
        return Reading(
            running=0,
            waiting=0,
            started=started,
            prefills=requests,
            prefill_ms=ms,
            computed_tokens=tokens,
        )

    def test_what_was_counted_in_between_is_told(self) -> None:
        first, second = self.reading(10, 5_000, 80_000), self.reading(12, 5_500, 88_000)
        assert self.prefilled(first, second) == [(0.5, 2, 8_000, 0.0)]

    def test_nothing_is_told_of_the_time_before_the_first_look(self) -> None:
        assert self.prefilled(self.reading(10, 5_000, 80_000)) == []

    def test_nothing_is_told_where_nothing_was_prefilled(self) -> None:
        same = self.reading(10, 5_000, 80_000)
        assert self.prefilled(same, same) == []

    def test_nothing_is_told_across_a_restart(self) -> None:
        later = self.reading(12, 5_500, 88_000, started=1000.0)
        assert self.prefilled(self.reading(10, 5_000, 80_000), later) == []
        assert self.prefilled(self.reading(10, 5_000, 80_000), self.reading(2, 500, 8_000)) == []

    @pytest.mark.parametrize(
        ("later", "restarts"),
        [
            ((12, 5_500, 88_000), []),
            ((12, 5_500, 88_000, 1000.0), [A.id]),
            ((2, 500, 8_000), [A.id]),
        ],
        ids=["the same process", "another start", "counters that fell"],
    )
    def test_a_restart_is_told(self, later: tuple[float, ...], restarts: list[InstanceId]) -> None:
        conditions = listed()
        seen: list[InstanceId] = []
        conditions.restarted = seen.append
        for reading in (self.reading(10, 5_000, 80_000), self.reading(*later)):
            told(conditions, A, reading)
        assert seen == restarts

    def test_nothing_is_told_of_an_engine_that_does_not_count(self) -> None:
        silent = Reading(running=0, waiting=0)
        assert self.prefilled(silent, self.reading(1, 2, 3), silent) == []


class TestLoad:
    def loads(self, conditions: Conditions, *ours: Load, now: float = 0.0) -> list[Load]:
        return list(conditions.loads((A, B, C)[: len(ours)], ours, now))

    def test_what_we_have_there_is_not_counted_twice(self) -> None:
        conditions = listed()
        busy = Reading(running=3, waiting=2, prompt_tokens=1e6, requests=10)
        told(conditions, A, busy, ours=5, queued=2)
        assert self.loads(conditions, Load(700.0, 5)) == [Load(700.0, 5)]

    def test_what_others_have_waiting_there_is_added_at_its_usual_size(self) -> None:
        conditions = listed()
        busy = Reading(running=4, waiting=3, prompt_tokens=9000, cached_tokens=1000, requests=4)
        told(conditions, A, busy, ours=2)
        assert self.loads(conditions, Load(100.0, 2)) == [Load(100.0 + 3 * 1000, 7)]

    def test_what_waits_there_though_it_was_predicted_to_be_done_is_added(self) -> None:
        """All of it is ours: the engine is slower than believed."""
        conditions = listed()
        busy = Reading(running=1, waiting=4, prompt_tokens=9000, cached_tokens=1000, requests=7)
        told(conditions, A, busy, ours=5, queued=1)
        assert self.loads(conditions, Load(100.0, 5)) == [Load(100.0 + 3 * 1000, 5)]

    def test_a_little_more_than_predicted_is_nothing(self) -> None:
        conditions = listed()
        conditions.rate = lambda _: 2_500.0 / LATE_S
        busy = Reading(running=1, waiting=4, prompt_tokens=9000, cached_tokens=1000, requests=7)
        told(conditions, A, busy, ours=5, queued=2)
        assert self.loads(conditions, Load(100.0, 5)) == [Load(100.0, 5)]
        told(conditions, A, busy, ours=5, queued=0)
        assert self.loads(conditions, Load(100.0, 5)) == [Load(100.0 + 1_500, 5)]

    def test_what_others_have_running_there_does_not_wait(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=6, waiting=0, prompt_tokens=9000, requests=9), ours=2)
        assert self.loads(conditions, Load(0.0, 2)) == [Load(0.0, 6)]

    def test_it_holds_for_as_long_as_it_is_fresh_and_is_then_unknown(self) -> None:
        conditions = listed()
        busy = Reading(running=0, waiting=4, prompt_tokens=1000, requests=1)
        told(conditions, A, busy, now=10)
        none = [Load(0.0, 0)]
        assert self.loads(conditions, *none, now=10 + FRESH_S)[0].waiting == 4000
        assert self.loads(conditions, *none, now=10 + FRESH_S + 0.1) == none

    def test_an_unknown_load_is_the_median_of_the_others_not_zero(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=0, waiting=2, prompt_tokens=1000, requests=1))
        told(conditions, B, Reading(running=0, waiting=6, prompt_tokens=1000, requests=1))
        idle = Load(0.0, 0)
        assert self.loads(conditions, idle, idle, idle)[2] == Load(4000.0, 4)

    def test_nor_is_it_less_than_what_we_have_there(self) -> None:
        conditions = listed()
        told(conditions, A)
        told(conditions, B)
        ours = Load(5000.0, 7)
        assert self.loads(conditions, Load(0.0, 0), Load(0.0, 0), ours)[2] == ours

    def test_where_no_load_is_known_ours_is_all_there_is(self) -> None:
        ours = [Load(1.0, 1), Load(2.0, 2), Load(3.0, 3)]
        assert self.loads(listed(), *ours) == ours

    def test_a_page_that_says_nothing_leaves_the_load_unknown(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=0, waiting=8, prompt_tokens=1000, requests=1))
        told(conditions, B, None)
        assert self.loads(conditions, Load(0.0, 0), Load(0.0, 0))[1].in_flight == 8

    def test_metrics_frozen_at_idle_do_not_draw_every_request(self) -> None:
        """A page whose numbers stand still says 0 for ever; what we sent there counts all the
        same (gateway-api-inference-extension #1497)."""
        conditions, ledger, now = listed(A, B), LoadLedger(), 0.0
        picks: list[str] = []
        for _ in range(40):
            now += 0.05
            for one in (A, B):
                ours = ledger.of(one.id, now, 1000.0)
                running = 0 if one is A else ours.in_flight
                told(conditions, one, Reading(running, 0), ours.in_flight, now)
            own = [ledger.of(one.id, now, 1000.0) for one in (A, B)]
            loads = conditions.loads((A, B), own, now)
            best = min(zip(loads, (A, B), strict=True), key=lambda pair: pair[0])[1]
            ledger.start(best.id, 400.0, now, 1000.0)
            picks.append(best.id)
        assert 15 <= picks.count("a") <= 25

    def test_an_answer_of_ten_minutes_is_in_flight_for_ten_minutes(self) -> None:
        """Entries of requests that live are not reaped (llm-d-router #2295)."""
        conditions, ledger = listed(A), LoadLedger()
        ticket = ledger.start(A.id, 2000.0, 0.0, 1000.0)
        for second in range(600):
            told(conditions, A, Reading(running=1, waiting=0), ours=1, now=second)
            own = ledger.of(A.id, second, 1000.0)
            assert conditions.loads((A,), [own], second)[0].in_flight == 1
        ledger.end(ticket)
        assert ledger.of(A.id, 600.0, 1000.0) == Load(0.0, 0)


class TestEmptied:
    """Whether an instance's cache has been emptied since it was looked at last."""

    def test_a_first_look_says_nothing_of_before(self) -> None:
        assert not told(listed(), A, Reading(running=0, waiting=0, started=5.0))

    def test_one_that_sleeps_at_the_first_look_holds_nothing(self) -> None:
        assert told(listed(), A, Reading(running=0, waiting=0, asleep=True))

    def test_another_process_has_an_empty_cache(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=0, waiting=0, started=5.0))
        assert told(conditions, A, Reading(running=0, waiting=0, started=9.0))
        assert not told(conditions, A, Reading(running=0, waiting=0, started=9.0))

    def test_so_has_one_whose_counters_fell(self) -> None:
        conditions = listed()
        told(conditions, A, Reading(running=0, waiting=0, prompt_tokens=900.0))
        assert told(conditions, A, Reading(running=0, waiting=0, prompt_tokens=20.0))

    def test_the_same_process_after_a_silence_has_not(self) -> None:
        conditions = listed()
        for _ in range(2):
            told_now = told(conditions, A, Reading(running=0, waiting=0, started=5.0))
            assert not told_now
            for _ in range(5):
                conditions.unanswered(A.id, refused=True, now=0)

    def test_one_without_metrics_that_refused_connections_has(self) -> None:
        conditions = listed()
        told(conditions, A, None)
        conditions.unanswered(A.id, refused=True, now=0)
        assert told(conditions, A, None)
        assert not told(conditions, A, None)

    def test_one_without_metrics_that_was_only_slow_has_not(self) -> None:
        conditions = listed()
        told(conditions, A, None)
        for _ in range(5):
            conditions.unanswered(A.id, refused=False, now=0)
        assert not told(conditions, A, None)

    def test_an_engine_that_falls_asleep_gives_its_cache_back(self) -> None:
        conditions = listed()
        told(conditions, A)
        assert told(conditions, A, Reading(running=0, waiting=0, asleep=True))
        assert not told(conditions, A, Reading(running=0, waiting=0, asleep=True))
        assert not told(conditions, A)
