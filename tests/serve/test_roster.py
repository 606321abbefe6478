"""Which instances the index knows, kept to what is listed."""

from collections.abc import Iterable

from extproc.index import Capacity, Fact, Joined, Left, PrefixIndex, Tier
from extproc.serve.roster import Roster
from extproc.terms import Endpoint, InstanceId
from tests.index.chains import A, B, depths, held


def listing(
    *names: InstanceId, capacity: int | None = None, port: int = 1
) -> Iterable[tuple[InstanceId, Endpoint, int, int | None]]:
    return [(name, Endpoint(f"{name}:{port}"), 16, capacity) for name in names]


def fold(index: PrefixIndex, facts: Iterable[Fact]) -> None:
    for fact in facts:
        index.apply(fact)


def joined(*names: InstanceId, grace_s: float = 0.0) -> tuple[Roster, PrefixIndex]:
    index = PrefixIndex()
    roster = Roster(index, grace_s)
    fold(index, roster.change(listing(*names)))
    return roster, index


def test_new_instances_join_and_those_that_stay_are_left_alone() -> None:
    roster, index = joined(A)
    fold(index, [held(A, "xyz")])
    facts = roster.change(listing(A, B))
    assert facts == [Joined(B, 16, "b:1")]
    fold(index, facts)
    assert depths(index, "xyz") == {"a": 3}


def test_a_capacity_is_written_when_it_is_known_and_when_it_changes() -> None:
    roster, _ = joined(A)
    first, same, more = (roster.change(listing(A, capacity=n)) for n in (10, 10, 20))
    assert first == [Capacity(A, Tier.GPU, 10)]
    assert same == []
    assert more == [Capacity(A, Tier.GPU, 20)]


def test_another_endpoint_under_the_same_name_is_a_new_instance() -> None:
    roster, _ = joined(A)
    assert roster.change(listing(A, port=2)) == [Joined(A, 16, "a:2")]


def test_alone_what_is_not_listed_leaves_at_once() -> None:
    roster, index = joined(A, B)
    roster.change(listing(A))
    assert roster.gone(index, lambda _: True, 0.0) == [Left(B)]


def test_what_another_replica_lists_never_leaves() -> None:
    roster, index = joined(A, B, grace_s=15.0)
    roster.change(listing(A))
    for now in (0.0, 16.0, 1e6):
        assert roster.gone(index, lambda name: name != B, now) == []


def test_what_nobody_lists_leaves_after_a_while_without_a_break() -> None:
    roster, index = joined(A, B, grace_s=15.0)
    roster.change(listing(A))
    assert roster.gone(index, lambda _: True, 0.0) == []
    assert roster.gone(index, lambda _: True, 14.0) == []
    assert roster.gone(index, lambda _: False, 14.5) == []  # somebody listed it again
    assert roster.gone(index, lambda _: True, 16.0) == []
    assert roster.gone(index, lambda _: True, 31.0) == [Left(B)]


def test_what_the_log_lost_joins_again_with_its_capacity() -> None:
    roster, _ = joined(A)
    roster.change(listing(A, capacity=10))
    assert roster.lost(PrefixIndex()) == [Joined(A, 16, "a:1"), Capacity(A, Tier.GPU, 10)]
