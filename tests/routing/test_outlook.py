"""From what is in flight and learnt to what a policy sees."""

import pytest

from extproc.routing import Arrivals, Assigned, Candidate, Load, Outlook, PricedTTFT, Speed, Turn
from extproc.terms import Endpoint, InstanceId

A, B = InstanceId("a"), InstanceId("b")
CANDIDATES = [Candidate(name, Endpoint(f"10.0.0.1:{port}"), 0) for port, name in enumerate((A, B))]


def told(rate: float, overhead_s: float = 0.0) -> Outlook:
    return Outlook(Speed(rate, overhead_s), 0.0)


def test_what_a_prefill_takes_beside_its_tokens_waits_too() -> None:
    outlook = told(1_000.0, overhead_s=0.5)
    outlook.start(A, 2_000.0, 0.0)
    waiting, in_flight = outlook.loads([A], 0.0)[0]
    assert waiting / 1_000.0 == pytest.approx(2.5)
    assert in_flight == 1
    assert outlook.loads([A], 2.4)[0].waiting > 0
    assert outlook.loads([A], 2.6)[0].waiting == 0


def test_each_instance_works_off_its_load_at_its_own_rate() -> None:
    outlook = told(10_000.0)
    for tokens in (5_000, 10_000) * 50:
        outlook.rates.observe(A, tokens / 10_000, 1, tokens)
        outlook.rates.observe(B, tokens / 1_000, 1, tokens)
    for name in (A, B):
        outlook.start(name, 10_000.0, 0.0)
    fast, slow = outlook.loads([A, B], 5.0)
    assert fast.waiting == 0
    assert slow.waiting > 4_000
    view = outlook.view(CANDIDATES, [fast, slow], 2, 5.0)
    assert view.instances[1].prefill_rate == pytest.approx(1_000, rel=0.2)


def test_requests_a_second_are_right_from_the_first_on() -> None:
    arrivals = Arrivals(0.0)
    for tick in range(1, 1000):
        arrivals.count(tick / 10)
        if tick > 20:
            assert arrivals.per_second(tick / 10) == pytest.approx(10, rel=0.06)
    assert arrivals.per_second(1000.0) < 0.01


def test_arrivals_are_shared_by_the_instances_of_the_pool() -> None:
    outlook = told(1_000.0)
    for tick in range(100):
        outlook.start(A, 0.0, tick / 10)
    view = outlook.view(CANDIDATES, [Load(0.0, 0)] * 2, 4, 10.0)
    assert view.arrival_rate == pytest.approx(2.5, rel=0.05)


def test_where_everybody_waits_what_is_cached_counts_more() -> None:
    """The same difference in waits, with a queue in front of all and without."""
    outlook = told(1_000.0)
    for tick in range(100):
        outlook.start(A, 0.0, tick / 10)
    holder = CANDIDATES[0]._replace(cached_tokens=1_000)
    picked = []
    for queue in (0.0, 20_000.0):
        loads = [Load(queue + 1_500.0, 1), Load(queue, 1)]
        view = outlook.view([holder, CANDIDATES[1]], loads, 2, 10.0)
        picked.append(PricedTTFT().rank(Turn(2_000), view).best.instance)
    assert picked == [B, A]


def test_what_other_replicas_assign_counts_as_if_it_were_ones_own() -> None:
    """All picks by one replica, and the same picks by two that tell each other."""
    one, left, right = (told(1_000.0) for _ in range(3))
    for tick in range(200):
        now = tick / 10
        one.start(A, 700.0, now)
        (left if tick % 2 else right).start(A, 700.0, now)
        left.assigned_by("right", right.assigned, now)
        right.assigned_by("left", left.assigned, now)
    expected = one.view(CANDIDATES, [Load(0.0, 0)] * 2, 10, 20.0)
    for each in (left, right):
        view = each.view(CANDIDATES, [Load(0.0, 0)] * 2, 10, 20.0)
        assert view.utilisation == pytest.approx(expected.utilisation, rel=0.05)
        assert view.arrival_rate == pytest.approx(expected.arrival_rate, rel=0.05)


def test_what_a_replica_assigned_before_it_was_heard_of_does_not_count() -> None:
    outlook = told(1_000.0)
    outlook.assigned_by("other", Assigned(1_000_000, 1e6), 0.0)
    outlook.assigned_by("other", Assigned(0, 0.0), 1.0)  # which cannot be
    outlook.assigned_by("other", None, 2.0)
    outlook.assigned_by("other", Assigned(1_000_000, 1e6), 3.0)
    assert outlook.arrivals.per_second(3.0) == 0
    assert outlook.utilisation.at(20.0, 1) == 0
