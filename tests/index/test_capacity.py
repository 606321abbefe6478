"""An instance keeps at most its capacity; what goes first is the same everywhere."""

from extproc.index import (
    Bounds,
    Capacity,
    Cleared,
    Dropped,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.index.scope import BLOCK_BYTES
from extproc.terms import InstanceId, PackedKeys
from tests.index.chains import A, B, C, depths, held, index_of, keys, packed

D = InstanceId("d")


def test_under_pressure_the_tail_goes_and_the_head_stays() -> None:
    index = index_of(A, capacity=4)
    index.apply(held(A, "abcdefgh"))
    assert depths(index, "abcdefgh") == {"a": 4}


def test_what_was_touched_longest_ago_goes_first() -> None:
    index = index_of(A, capacity=6)
    index.apply(held(A, "abc"))
    index.apply(held(A, "xyz"))
    index.apply(held(A, "abc", after=3))  # nothing new: a touch
    index.apply(held(A, "q"))
    assert [depths(index, p) for p in ("abc", "xyz", "q")] == [{"a": 3}, {"a": 2}, {"a": 1}]


def test_a_shared_head_outlives_its_branches() -> None:
    index = index_of(A, capacity=6)
    index.apply(held(A, "sysAA"))
    index.apply(held(A, "sysBB"))
    assert depths(index, "sysAA") == {"a": 4}
    index.apply(held(A, "sysCCC"))
    assert depths(index, "sysCCC") == {"a": 6}
    assert depths(index, "sysBB") == {"a": 3}


def test_a_touch_that_ends_inside_a_conversation_does_not_save_its_tail() -> None:
    index = index_of(A, capacity=6)
    index.apply(held(A, "abcd"))
    index.apply(held(A, "xy"))
    index.apply(held(A, "ab"))
    index.apply(held(A, "q"))
    assert depths(index, "abcd") == {"a": 3}, "d is older than xy"
    index.apply(held(A, "qrs"))
    assert depths(index, "abcd") == {"a": 2}
    assert depths(index, "xy") == {"a": 1}


def test_edges_that_join_again_keep_the_order_of_every_holder() -> None:
    index = index_of(A, B, capacity=9)
    for instance in (A, B):
        index.apply(held(instance, "abcdef"))
    index.apply(held(A, "abcX"))  # splits after abc
    gone = PackedKeys(keys("abcX")[3].to_bytes(8, "little"))
    index.apply(Dropped(A, Tier.GPU, gone, Source.EVENT))
    index.apply(held(B, "xyz"))
    index.apply(held(B, "abc"))
    index.apply(held(A, "abcdef"))  # for a, both halves are equal now; for b they are not
    index.apply(held(B, "qqqqq"))
    assert [depths(index, p)["b"] for p in ("abcdef", "xyz", "qqqqq")] == [3, 1, 5]


def test_each_instance_has_a_capacity_and_an_order_of_its_own() -> None:
    index = index_of(A, B, capacity=2)
    index.apply(Capacity(B, Tier.GPU, 9))
    index.apply(held(A, "abc"))
    index.apply(held(B, "abc"))
    assert depths(index, "abc") == {"a": 2, "b": 3}


def test_each_tier_has_a_capacity_of_its_own() -> None:
    index = index_of(A, capacity=2)
    index.apply(held(A, "abc", tier=Tier.CPU, source=Source.EVENT))
    assert index.held_blocks(A) == 3
    index.apply(Capacity(A, Tier.CPU, 1))
    assert index.held_blocks(A) == 1


def test_a_smaller_capacity_counts_at_once_and_zero_keeps_nothing() -> None:
    index = index_of(A)
    index.apply(held(A, "abcdef"))
    index.apply(Capacity(A, Tier.GPU, 2))
    assert depths(index, "abcdef") == {"a": 2}
    index.apply(Capacity(A, Tier.GPU, 0))
    assert (index.held_blocks(A), index.stats().blocks) == (0, 0)
    assert index.stats().evicted == {"capacity": 6}


def test_room_that_a_removal_made_is_used() -> None:
    index = index_of(A, capacity=4)
    index.apply(held(A, "abcd"))
    gone = PackedKeys(keys("abcd")[3].to_bytes(8, "little"))
    index.apply(Dropped(A, Tier.GPU, gone, Source.EVENT))
    index.apply(held(A, "x"))
    assert [depths(index, p) for p in ("abcd", "x")] == [{"a": 3}, {"a": 1}]


def test_the_queue_of_touches_does_not_grow_with_the_history() -> None:
    index = index_of(A, capacity=50)
    index.apply(held(A, "abcdef"))
    for _ in range(5000):
        index.apply(held(A, "abcdef"))
    (instance,) = index.instances()
    assert len(instance.tails[Tier.GPU]) == 1


def test_whose_a_chain_is_does_not_depend_on_when_an_empty_one_is_swept_out() -> None:
    """An engine stores it again, and does not know whose it is."""
    digests = []
    for swept in (True, False):
        index = PrefixIndex(Bounds(tenant_bytes=4 * BLOCK_BYTES))
        index.apply(Joined(A, 16))
        for number in range(300):
            index.apply(held(A, chr(0x4E00 + number)))
        index.apply(held(A, "abc", tenant="blue"))
        index.apply(Cleared(A, Source.EVENT))
        while swept and index.step():
            pass
        index.apply(held(A, "abc", source=Source.EVENT))
        index.apply(held(A, "abcd", after=3, tenant="blue"))
        index.apply(held(A, "xyz", tenant="blue"))
        while index.step():
            pass
        digests.append(index.digest)
        assert [depths(index, prompt) for prompt in ("abcd", "xyz")] == [{"a": 4}, {"a": 3}]
    assert digests[0] == digests[1]


def test_a_chain_that_somebody_still_holds_stays_its_tenants() -> None:
    index = PrefixIndex(Bounds(tenant_bytes=4 * BLOCK_BYTES))
    for name in (A, B):
        index.apply(Joined(name, 16))
        index.apply(held(name, "ab", tenant="blue"))
    index.apply(Cleared(A, Source.EVENT))
    index.apply(held(A, "ab", source=Source.EVENT))
    index.apply(held(B, "xyz", tenant="blue"))
    assert sum(map(index.held_blocks, (A, B))) == 4
    index.apply(Left(A))
    index.apply(Left(B))
    index.apply(Joined(B, 16))
    while index.step():
        pass
    index.apply(held(B, "abcdef", source=Source.EVENT))
    assert index.held_blocks(B) == 6, "nobody's now"


def others(index: PrefixIndex) -> None:
    """So many edges that it takes a while to sweep."""
    index.apply(Joined(D, 16))
    for number in range(600):
        index.apply(held(D, chr(0x4E00 + number)))


def test_a_tenants_bound_is_kept_when_an_event_brings_the_block_too_many() -> None:
    index = PrefixIndex(Bounds(tenant_bytes=4 * BLOCK_BYTES))
    index.apply(Joined(A, 16))
    index.apply(held(A, "abc", tenant="blue"))
    index.apply(held(A, "abcdef", after=3, source=Source.EVENT))
    assert index.held_blocks(A) == 4


def test_a_chain_is_nobodys_when_the_last_block_was_dropped_from_it() -> None:
    index = PrefixIndex(Bounds(tenant_bytes=4 * BLOCK_BYTES))
    others(index)
    for name in (A, B):
        index.apply(Joined(name, 16))
        index.apply(held(name, "ab", tenant="blue"))
    index.apply(Left(A))
    index.apply(Dropped(B, Tier.GPU, packed("ab"), Source.EVENT))
    assert index.tree.ghosts, "a's edges are not swept out yet"
    index.apply(held(B, "abcdef", source=Source.EVENT))
    assert index.held_blocks(B) == 6


def test_who_takes_the_slot_of_an_instance_that_left_does_not_hold_its_chains() -> None:
    index = PrefixIndex(Bounds(tenant_bytes=4 * BLOCK_BYTES))
    others(index)
    for name in (A, B):
        index.apply(Joined(name, 16))
        index.apply(held(name, "ab", tenant="blue"))
    slot = index.instances()[1].slot
    index.apply(Left(A))
    while index.step():
        pass
    index.apply(Joined(C, 16))
    assert index.instances()[-1].slot == slot
    index.apply(Left(B))
    assert index.tree.ghosts, "b's edges are not swept out yet"
    index.apply(held(C, "abcdef", source=Source.EVENT))
    assert index.held_blocks(C) == 6
