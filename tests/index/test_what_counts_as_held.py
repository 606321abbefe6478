"""The definition of the index, line by line; several are faults that other indexes have."""

import pytest

from extproc.index import (
    Capacity,
    Cleared,
    Depths,
    Dropped,
    Expired,
    Held,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.terms import BlockKey, InstanceId, PackedKeys
from tests.index.chains import A, B, C, depths, held, index_of, keys, packed


def dropped(instance: InstanceId, prompt: str, *blocks: int, tier: Tier = Tier.GPU) -> Dropped:
    chain = keys(prompt)
    gone = b"".join(chain[b].to_bytes(8, "little") for b in blocks)
    return Dropped(instance, tier, PackedKeys(gone), Source.EVENT)


def drain(index: PrefixIndex) -> None:
    while index.step():
        pass


def test_an_empty_index_and_an_empty_prompt_match_nothing() -> None:
    assert PrefixIndex().match(packed("xyz")) == {}
    index = index_of(A)
    index.apply(held(A, "xyz"))
    assert index.match(packed("")) == {}


def test_all_64_holders_of_one_system_prompt_match() -> None:
    names = [InstanceId(f"i{n}") for n in range(64)]
    index = index_of(*names)
    for name in names:
        index.apply(held(name, "system"))
    assert index.match(packed("system user")) == dict.fromkeys(names, Depths(6, 6))
    index.apply(held(names[5], "system user"))
    assert depths(index, "system user") == dict.fromkeys(names, 6) | {"i5": 11}
    assert index.stats().edges == 2, "one that goes on must not make the others partial holders"


def test_every_instance_of_a_conversation_matches_as_far_as_it_went() -> None:
    index = index_of(A, B, C)
    index.apply(held(A, "abcdef"))
    index.apply(held(B, "abcd"))
    index.apply(held(C, "abX"))
    assert depths(index, "abcdefgh") == {"a": 6, "b": 4, "c": 2}
    assert depths(index, "abXY") == {"a": 2, "b": 2, "c": 3}
    assert depths(index, "abc") == {"a": 3, "b": 3, "c": 2}
    assert depths(index, "q") == {}


def test_the_same_block_after_another_one_is_another_block() -> None:
    index = index_of(A)
    index.apply(held(A, "XB"))
    assert depths(index, "YB") == {}
    assert depths(index, "B") == {}


def test_a_fact_with_an_unknown_parent_is_counted_and_never_filed_as_a_root() -> None:
    index = index_of(A)
    index.apply(held(A, "abcd", after=2))
    assert depths(index, "cd") == depths(index, "abcd") == {}
    assert index.match(packed("abcd", after=2)) == {}
    assert index.stats().refused == {"unknown_parent": 1}
    assert index.stats().blocks == 0


def test_the_facts_after_one_that_was_refused_count() -> None:
    index = index_of(A)
    index.apply(held(A, "abcd", after=2))
    index.apply(held(A, "abcd"))
    assert depths(index, "abcd") == {"a": 4}


def test_facts_of_an_instance_that_never_joined_are_counted() -> None:
    index = index_of(A)
    for fact in (held(B, "ab"), Left(B), Cleared(B, Source.EVENT), Capacity(B, Tier.GPU, 5)):
        index.apply(fact)
    assert index.stats().refused == {"unknown_instance": 4}
    assert index.held_blocks(B) == 0


def test_keys_that_are_cut_are_counted() -> None:
    index = index_of(A)
    index.apply(Held(A, Tier.GPU, BlockKey(0), PackedKeys(b"1234567"), Source.EVENT))
    assert index.stats().refused == {"malformed": 1}


def test_keys_that_are_no_chain_are_counted_and_do_no_harm() -> None:
    index = index_of(A, B)
    index.apply(held(A, "abcd"))
    index.apply(held(B, "xy"))
    elsewhere = Held(B, Tier.GPU, keys("xy")[1], packed("abcd"), Source.PICK)
    index.apply(elsewhere)
    no_chain = PackedKeys(packed("a") + packed("zzzz", after=1))
    index.apply(Held(B, Tier.GPU, BlockKey(0), no_chain, Source.PICK))
    assert index.stats().refused["conflict"] >= 1
    assert depths(index, "abcd")["a"] == 4
    assert depths(index, "xy") == {"b": 2}


def test_a_pick_that_names_only_new_blocks_asserts_the_whole_chain() -> None:
    index = index_of(A, B)
    index.apply(held(A, "abcd"))
    index.apply(held(B, "abcdef", after=4))
    assert depths(index, "abcdef") == {"a": 4, "b": 6}


def test_an_event_asserts_only_its_own_blocks() -> None:
    index = index_of(A, B)
    index.apply(held(A, "abcd"))
    index.apply(held(B, "abcdef", after=4, source=Source.EVENT))
    assert depths(index, "abcdef") == {"a": 4}
    assert index.held_blocks(B) == 2


@pytest.mark.parametrize("source", list(Source))
def test_a_hole_ends_the_match_and_a_refilled_one_counts_in_full(source: Source) -> None:
    index = index_of(A)
    index.apply(held(A, "abcdefgh"))
    index.apply(dropped(A, "abcdefgh", 2, 3))
    assert depths(index, "abcdefgh") == {"a": 2}
    index.apply(held(A, "abcd", after=2, source=source))
    assert depths(index, "abcdefgh") == {"a": 8}


def test_a_block_that_one_instance_drops_stays_with_the_others() -> None:
    index = index_of(A, B)
    index.apply(held(A, "abc"))
    index.apply(held(B, "abc"))
    index.apply(dropped(A, "abc", 1))
    assert depths(index, "abc") == {"a": 1, "b": 3}


def test_a_block_dropped_twice_is_dropped_once() -> None:
    index = index_of(A)
    index.apply(held(A, "abc"))
    index.apply(dropped(A, "abc", 2))
    index.apply(dropped(A, "abc", 2))
    assert index.held_blocks(A) == 2


def test_a_dropped_head_with_a_held_tail_is_still_its_parent() -> None:
    index = index_of(A)
    index.apply(held(A, "abcd"))
    index.apply(dropped(A, "abcd", 0, 1))
    assert depths(index, "abcd") == {}
    index.apply(held(A, "ab"))
    assert depths(index, "abcd") == {"a": 4}


def test_a_block_on_the_cpu_counts_there_and_survives_on_the_gpu() -> None:
    index = index_of(A)
    index.apply(held(A, "abcd"))
    index.apply(held(A, "ab", tier=Tier.CPU, source=Source.EVENT))
    index.apply(dropped(A, "abcd", 1))
    assert index.match(packed("abcd")) == {A: Depths(1, 4)}
    index.apply(dropped(A, "abcd", 1, tier=Tier.CPU))
    assert index.match(packed("abcd")) == {A: Depths(1, 1)}


def test_a_pick_asserts_the_chain_in_its_own_tier() -> None:
    index = index_of(A)
    index.apply(held(A, "ab"))
    index.apply(held(A, "ab", after=2, tier=Tier.CPU))
    index.apply(dropped(A, "ab", 0, 1))
    assert index.match(packed("ab")) == {A: Depths(0, 2)}


def test_tiers_are_added_block_by_block() -> None:
    index = index_of(A)
    for tier, after, prompt in (
        (Tier.GPU, 0, "a"),
        (Tier.CPU, 1, "ab"),
        (Tier.GPU, 2, "abc"),
        (Tier.CPU, 3, "abcd"),
    ):
        index.apply(held(A, prompt, after, tier, Source.EVENT))
    assert index.match(packed("abcd")) == {A: Depths(1, 4)}


def test_an_expiry_takes_expected_blocks_and_leaves_confirmed_ones() -> None:
    index = index_of(A)
    index.apply(held(A, "abcd"))
    index.apply(held(A, "ab", source=Source.EVENT))
    index.apply(Expired(A, packed("abcd")))
    assert depths(index, "abcd") == {"a": 2}


def test_a_pick_does_not_make_a_confirmed_block_expected_again() -> None:
    index = index_of(A)
    index.apply(held(A, "ab", source=Source.EVENT))
    index.apply(held(A, "ab"))
    index.apply(Expired(A, packed("ab")))
    assert depths(index, "ab") == {"a": 2}


def test_a_cleared_instance_holds_nothing_and_goes_on() -> None:
    index = index_of(A, B, capacity=8)
    index.apply(held(A, "abc"))
    index.apply(held(B, "ab"))
    index.apply(Cleared(A, Source.EVENT))
    assert depths(index, "abc") == {"b": 2}
    drain(index)
    assert index.stats().blocks == 2
    index.apply(held(A, "abcdefghij"))
    assert depths(index, "abcdefghij") == {"a": 8, "b": 2}


def test_an_instance_that_left_takes_everything_along_and_its_name_is_free_again() -> None:
    index = index_of(A, B, capacity=3)
    index.apply(held(A, "abcdef"))
    index.apply(Left(A))
    assert (depths(index, "abc"), index.held_blocks(A)) == ({}, 0)
    index.apply(Joined(A, 16))
    assert depths(index, "abc") == {}
    index.apply(held(A, "abcdef"))
    assert depths(index, "abcdef") == {"a": 6}, "the old capacity must not outlive the instance"


def test_a_slot_that_is_used_again_brings_no_blocks_of_its_former_instance() -> None:
    index = index_of(A, B)
    index.apply(held(A, "abc"))
    index.apply(Left(A))
    index.apply(Joined(C, 16))
    assert depths(index, "abc") == {}


@pytest.mark.parametrize("other", [Joined(A, 32), Joined(A, 16, "10.0.0.1:8000")])
def test_joining_as_another_one_empties_the_instance(other: Joined) -> None:
    index = index_of(A, capacity=3)
    index.apply(held(A, "abc"))
    index.apply(other)
    assert (depths(index, "abc"), index.held_blocks(A)) == ({}, 0)
    index.apply(held(A, "abcdef"))
    assert depths(index, "abcdef") == {"a": 6}, "the old capacity must not outlive it"


def test_an_instance_that_is_said_to_join_by_several_replicas_stays_as_it_is() -> None:
    index = index_of(A, capacity=3)
    index.apply(held(A, "abc"))
    index.apply(Joined(A, 16))
    assert depths(index, "abc") == {"a": 3}
    index.apply(held(A, "abcdef"))
    assert depths(index, "abcdef") == {"a": 3}


def test_a_reset_index_is_a_new_one() -> None:
    index = index_of(A, capacity=2)
    index.apply(held(A, "abc"))
    index.reset()
    assert (index.digest, index.stats()) == (PrefixIndex().digest, PrefixIndex().stats())
