"""Bulk work is cut into slices, and what waits is still answered and kept in order."""

import gc

import pytest
from xxhash import xxh3_64_digest

from extproc.index import (
    Bounds,
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Held,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
    holdings,
    table,
)
from extproc.index.edge import Edge
from extproc.index.scope import BLOCK_BYTES
from extproc.index.table import BATCH_KEYS
from extproc.index.tree import MAX_EDGE, Tree
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys
from tests.index.chains import A, B, C, depths, held, index_of, keys, packed

LONG = "".join(chr(0x4E00 + n) for n in range(3 * MAX_EDGE))
"""A prompt of three edges."""


def bushy(index: PrefixIndex, branches: int) -> list[str]:
    """Conversations of A that share nothing but their first block."""
    prompts = [f"s{chr(0x4E00 + n)}{n % 7}" for n in range(branches)]
    for prompt in prompts:
        index.apply(held(A, prompt))
    return prompts


def one_by_one(*prompts: str) -> PackedKeys:
    """Keys that are no neighbours, so that each is a step of its own."""
    return PackedKeys(b"".join(keys(prompt)[-1].to_bytes(8, "little") for prompt in prompts))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "_SLICE", 5)


@pytest.mark.usefixtures("small_slices")
def test_facts_behind_bulk_work_wait_their_turn_and_match_shows_the_state_so_far() -> None:
    index = index_of(A, B)
    prompts = bushy(index, 40)
    index.apply(Dropped(A, Tier.GPU, one_by_one(*prompts), Source.EVENT))
    assert index.backlog == 1
    assert depths(index, prompts[4])["a"] == 2
    assert depths(index, prompts[5])["a"] == 3
    index.apply(held(A, prompts[39]))  # must not be undone by the removal before it
    index.apply(held(B, "s"))
    assert depths(index, prompts[39]) == {"a": 3}, "b's fact waits"
    while index.backlog:
        index.step()
    assert depths(index, prompts[39]) == {"a": 3, "b": 1}
    assert depths(index, prompts[20])["a"] == 2


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("fact", ["capacity", "expiry", "held"])
def test_every_kind_of_bulk_work_is_cut_and_ends_as_if_it_were_not(fact: str) -> None:
    index, whole = index_of(A, capacity=200), index_of(A, capacity=200)
    prompts = bushy(index, 60)
    bushy(whole, 60)
    bulk = {
        "capacity": Capacity(A, Tier.GPU, 3),
        "expiry": Expired(A, one_by_one(*prompts)),
        "held": held(A, LONG[:195]),
    }[fact]
    index.apply(bulk)
    assert index.backlog == 1
    while index.step():
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdings, "_SLICE", 10_000)
        whole.apply(bulk)
    assert whole.backlog == 0
    assert index.digest == whole.digest
    assert index.held_blocks(A) == whole.held_blocks(A) <= 200


@pytest.mark.usefixtures("small_slices")
def test_a_bound_is_kept_in_slices_too() -> None:
    index = PrefixIndex(Bounds(pool_bytes=200 * BLOCK_BYTES))
    index.apply(Joined(A, 16))
    bushy(index, 60)
    index.apply(held(A, LONG[:190]))
    assert index.backlog == 1
    while index.step():
        pass
    assert index.held_blocks(A) == 200


def test_a_removal_of_many_blocks_of_few_edges_is_cut_as_well() -> None:
    index = index_of(A)
    index.apply(held(A, LONG))
    backwards = PackedKeys(b"".join(key.to_bytes(8, "little") for key in reversed(keys(LONG))))
    index.apply(Dropped(A, Tier.GPU, backwards, Source.EVENT))
    assert index.backlog == 0, "three edges are one slice"
    chains = [chr(0x3000 + number) + LONG[: MAX_EDGE - 1] for number in range(12)]
    for chain in chains:
        index.apply(held(A, chain))
    index.apply(Dropped(A, Tier.GPU, PackedKeys(b"".join(map(packed, chains))), Source.EVENT))
    assert index.backlog == 1
    while index.step():
        pass
    assert index.held_blocks(A) == 0


def test_blocks_that_nobody_knows_are_looked_for_in_slices() -> None:
    index = index_of(A)
    index.apply(held(A, "hello"))
    unknown = PackedKeys(b"".join(xxh3_64_digest(n.to_bytes(4)) for n in range(1000)))
    for fact in (Dropped(A, Tier.GPU, unknown, Source.EVENT), Expired(A, unknown)):
        index.apply(fact)
        assert index.backlog == 1
        while index.step():
            pass
    assert index.held_blocks(A) == 5


def test_a_table_is_made_for_what_the_instances_can_hold() -> None:
    sizes = []
    for capacity in (None, 1_000_000):
        index = index_of(A, capacity=capacity)
        for number in range(40):
            index.apply(held(A, chr(0x3000 + number) + LONG[:999]))
        while index.step():
            pass
        sizes.append(index.stats().table_bytes)
    assert sizes[1] > 1.5 * sizes[0], "it would be made anew again and again"


def test_facts_alone_work_the_backlog_off(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(A)
    prompts = bushy(index, 40)
    monkeypatch.setattr(holdings, "_SLICE", 5)
    index.apply(Dropped(A, Tier.GPU, one_by_one(*prompts), Source.EVENT))
    for _ in range(20):
        index.apply(held(A, "s"))
    assert index.backlog < 20
    assert depths(index, prompts[30])["a"] == 2


@pytest.mark.parametrize("gone", [Cleared(A, Source.EVENT), Left(A), Joined(A, 32)])
def test_an_instance_is_cleared_at_once_and_swept_out_in_slices(gone) -> None:
    index = index_of(A, B)
    prompts = bushy(index, 300)
    index.apply(held(B, prompts[7]))
    index.apply(gone)
    assert index.backlog == 0
    assert index.held_blocks(A) == 0
    assert depths(index, prompts[7]) == {"b": 3}
    assert index.stats().edges > 100, "the sweep is still to come"
    index.apply(Joined(C, 16))
    assert depths(index, prompts[7]) == {"b": 3}, "the slot must not be given away before"
    while index.step():
        pass
    assert index.stats().blocks == 3


def test_a_parent_that_only_a_cleared_instance_held_is_unknown_before_the_sweep_too() -> None:
    index = index_of(A, B)
    bushy(index, 300)
    index.apply(held(A, "hello"))
    index.apply(Cleared(A, Source.EVENT))
    index.apply(held(B, "hello", after=4))
    assert index.stats().refused == {"unknown_parent": 1}


def test_facts_alone_finish_a_sweep() -> None:
    index = index_of(A, B)
    bushy(index, 300)
    index.apply(Left(A))
    for _ in range(300):
        index.apply(held(B, "hello"))
    assert index.stats().blocks == 5


def test_long_prompts_are_cut_into_edges_and_match_in_full() -> None:
    index = index_of(A, B)
    index.apply(held(A, LONG))
    index.apply(held(B, LONG[: MAX_EDGE + 5]))
    assert depths(index, LONG) == {"a": 3 * MAX_EDGE, "b": MAX_EDGE + 5}
    assert index.stats().edges == 3


def test_every_block_is_found_while_the_table_grows_and_after() -> None:
    index = index_of(A, B)
    for n in range(40):
        index.apply(held(A, chr(0x3000 + n) + LONG[:400]))
    growing = PrefixIndex().stats().table_bytes
    assert index.stats().table_bytes > growing
    for n in range(40):
        prompt = chr(0x3000 + n) + LONG[:400]
        for at in (0, 1, 200, 399):  # the middle of an edge is found by the table only
            index.apply(held(B, prompt[: at + 1], after=at))
        assert depths(index, prompt)["b"] in (1, 2, 201, 400)
    assert index.stats().refused == {}


def test_a_burst_while_the_table_grows_is_found_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_SMALLEST", 4096)
    index = index_of(A, B)
    index.apply(held(A, LONG[:1000]))
    for n in range(40):
        index.apply(held(A, chr(0x3000 + n) + LONG[:400]))
        if index.tree.table._next is not None:
            break
    assert index.tree.table._next is not None, "no new table was begun"
    burst = PackedKeys(b"".join(xxh3_64_digest(n.to_bytes(4)) for n in range(60_000)))
    index.apply(Held(A, Tier.GPU, NO_BLOCK, burst, Source.PICK))
    while index.step():
        pass
    for at in range(7, 60_000, 997):
        gone = PackedKeys(burst[8 * at : 8 * at + 8])
        index.apply(Dropped(A, Tier.GPU, gone, Source.EVENT))
    assert index.held_blocks(A) == 60_000 + 1000 + 400 * (n + 1) + n + 1 - len(
        range(7, 60_000, 997)
    )


def test_blocks_are_found_before_they_are_in_the_table() -> None:
    index = index_of(A, B)
    index.apply(held(A, LONG[: BATCH_KEYS // 4]))
    assert index.tree.table.waiting == BATCH_KEYS // 4
    index.apply(held(B, LONG[:100], after=99))
    assert depths(index, LONG[:100]) == {"a": 100, "b": 100}


def test_the_table_forgets_blocks_that_have_gone() -> None:
    index = index_of(A, capacity=2000)
    sizes = []
    for n in range(60):
        index.apply(held(A, chr(0x3000 + n) + LONG[:900]))
        sizes.append(index.stats().table_bytes)
    while index.step():
        pass
    assert index.stats().blocks <= 2000
    assert max(sizes) < 3 * max(sizes[:8]), "it must not grow with the history"


def test_the_collector_does_not_see_the_tree() -> None:
    index = index_of(A, B)
    gc.collect()
    before = len(gc.get_objects())
    bushy(index, 2000)
    index.apply(held(B, LONG))
    gc.collect()
    assert len(gc.get_objects()) - before < 300


def test_an_index_as_deep_as_it_is_long_can_be_thrown_away() -> None:
    index = index_of(A)
    index.apply(held(A, LONG))
    chain = keys(LONG)
    for depth in range(1, 3000):  # at every block another prompt branches off
        branch = PackedKeys(depth.to_bytes(8, "big"))
        index.apply(Held(A, Tier.GPU, chain[depth], branch, Source.EVENT))
    assert index.stats().edges > 5900
    index.reset()
    assert index.stats().edges == 0
    index.apply(Joined(B, 16))
    index.apply(held(B, "hello"))
    while index.step():
        pass
    assert depths(index, "hello") == {"b": 5}
    del index


def test_a_chain_of_edges_deeper_than_the_c_stack_can_be_thrown_away() -> None:
    tree, edge = Tree(), None
    for number in range(1, 400_001):
        edge = Edge(keys=number.to_bytes(8, "little"), parent=edge)
        tree.store.add(edge)
    del edge, tree
    gc.collect()


def test_slots_are_used_again_once_they_are_swept() -> None:
    index = index_of(A)
    for _ in range(50):
        index.apply(held(A, "abc"))
        index.apply(Cleared(A, Source.EVENT))
        while index.step():
            pass
    assert index.instances()[0].slot < 3


def test_splits_do_not_pile_up() -> None:
    index = index_of(A)
    for n in range(50):  # answers that were tried and dropped, each splitting the conversation
        index.apply(held(A, "conversation"[: 4 + n % 8] + chr(0x3000 + n)))
        index.apply(held(A, "conversation"))
        gone = keys("conversation"[: 4 + n % 8] + chr(0x3000 + n))[-1:]
        index.apply(Dropped(A, Tier.GPU, PackedKeys(gone[0].to_bytes(8, "little")), Source.EVENT))
    index.apply(held(A, "conversation"))
    assert index.stats().edges == 1
    assert depths(index, "conversation") == {"a": 12}


def test_names_are_remembered_per_mask_and_forgotten_when_somebody_leaves() -> None:
    names = [InstanceId(f"i{n}") for n in range(20)]
    index = index_of(*names)
    for name in names:
        index.apply(held(name, "ab"))
    assert len(index.match(packed("ab"))) == 20
    index.apply(Left(names[3]))
    index.apply(Joined(C, 16))
    assert C not in index.match(packed("ab"))
    assert names[3] not in index.match(packed("ab"))
