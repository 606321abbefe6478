"""What events say of a cache, and what the index holds of it (PITFALLS, "KV events")."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.engines.events import Fold
from extproc.engines.events.fold import MAX_BLOCKS
from extproc.index import Cleared, Dropped, Held, Joined, PrefixIndex, Source, Tier
from extproc.prompt import block_keys, pack_ids
from extproc.terms import KEY_BYTES, BlockKey, InstanceId, PackedKeys
from tests.engines.events.engine import CALM, CLEARED, as_array, one, removed, stored
from tests.engines.events.model import BLOCK, ENGINE, Cache, Told, root

IDS = list(range(1000, 1000 + 8 * BLOCK))


def blocks(start: int, stop: int) -> list[int]:
    """Tokens of blocks of IDS."""
    return IDS[start * BLOCK : stop * BLOCK]


def test_the_blocks_of_one_event_chain_on_each_other_and_the_first_on_the_parent() -> None:
    told = Told()
    told.tell(stored([1, 2, 3], blocks(0, 3)))
    told.tell(stored([4, 5], blocks(3, 5), 3))
    assert told.depth(IDS) == (5, 5)
    assert told.depth(blocks(1, 5)) == (0, 0)


def test_what_events_say_meets_what_picks_expect_in_one_tree() -> None:
    told = Told()
    keys = block_keys(pack_ids(IDS), root(), BLOCK)
    told.index.apply(Held(ENGINE, Tier.GPU, BlockKey(0), keys, Source.PICK))
    told.tell(stored([1, 2, 3], blocks(0, 3)))
    assert told.index.stats().blocks == len(keys) // KEY_BYTES


def test_one_event_of_many_blocks_is_one_fact() -> None:
    told = Told()
    facts = told.fold.apply(one(stored([1, 2, 3], blocks(0, 3))))
    assert [type(fact) for fact in facts] == [Held]


def test_a_block_stored_twice_and_removed_once_is_still_held() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1)))
    assert told.tell(stored([1], blocks(0, 1))) == []
    assert told.tell(removed(1)) == []
    assert told.depth(IDS) == (1, 1)
    assert [type(fact) for fact in told.tell(removed(1))] == [Dropped]
    assert told.depth(IDS) == (0, 0)


def test_a_block_that_was_merely_read_again_is_no_copy() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1), origin="REUSED"))
    told.tell(stored([1], blocks(0, 1), origin="REUSED"))
    told.tell(removed(1))
    assert told.depth(IDS) == (0, 0)


def test_stored_on_gpu_and_cpu_and_removed_on_gpu_it_is_on_cpu() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1)), stored([1], blocks(0, 1), medium="CPU"))
    assert told.depth(IDS) == (1, 1)
    told.tell(removed(1))
    assert told.depth(IDS) == (0, 1)
    told.tell(removed(1, medium="CPU"))
    assert told.depth(IDS) == (0, 0)


def test_a_removal_from_a_tier_that_never_had_the_block_takes_nothing() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1)))
    assert told.tell(removed(1, medium="CPU")) == []
    assert told.depth(IDS) == (1, 1)
    told.tell(removed(1))
    assert (told.depth(IDS), told.fold.blocks) == ((0, 0), 0)


def test_an_offloaded_block_need_not_repeat_its_tokens() -> None:
    told = Told()
    told.tell(stored([1, 2], blocks(0, 2)))
    told.tell(stored([1, 2], [], medium="CPU", block_size=0))
    told.tell(removed(1, 2))
    assert told.depth(IDS) == (0, 2)
    told.tell(stored([7], [], medium="CPU", block_size=0))
    assert told.fold.skipped == {"unknown_block": 1}


def test_a_removal_concerns_only_the_instance_that_sends_it() -> None:
    index = PrefixIndex()
    names = [InstanceId("a"), InstanceId("b")]
    folds = [Fold(name, BLOCK, root) for name in names]
    for name, fold in zip(names, folds, strict=True):
        index.apply(Joined(name, BLOCK))
        for fact in fold.apply(one(stored([1, 2], blocks(0, 2)))):
            index.apply(fact)
    for fact in folds[0].apply(one(removed(1, 2))):
        index.apply(fact)
    assert [index.held_blocks(name) for name in names] == [0, 2]


def test_everything_goes_with_all_blocks_cleared() -> None:
    told = Told()
    told.tell(stored([1, 2], blocks(0, 2)), stored([1], [], medium="CPU"))
    assert told.tell(CLEARED) == [Cleared(ENGINE, Source.EVENT)]
    assert (told.depth(IDS), told.fold.blocks) == ((0, 0), 0)
    told.tell(stored([1], blocks(0, 1)))
    assert told.depth(IDS) == (1, 1)


def test_a_block_of_unknown_parent_is_left_out_and_never_filed_as_a_root() -> None:
    told = Told()
    assert told.tell(stored([5], blocks(1, 2), 4)) == []
    assert told.depth(blocks(1, 2)) == (0, 0)
    assert (told.fold.orphans, told.fold.skipped) == (1, {"unknown_parent": 1})


def test_a_removed_block_can_come_back_with_its_children() -> None:
    told = Told()
    told.tell(stored([1, 2], blocks(0, 2)), removed(2, 1))
    told.tell(stored([1, 2], blocks(0, 2)))
    assert told.depth(IDS) == (2, 2)


def test_an_unknown_parent_is_found_among_the_prompts_that_were_routed_there() -> None:
    keys = block_keys(pack_ids(IDS), root(), BLOCK)
    key = [BlockKey(int.from_bytes(keys[at : at + 8], "little")) for at in range(0, len(keys), 8)]
    asked = []

    def find(ids: bytes) -> BlockKey | None:
        asked.append(ids)
        return key[2] if ids == pack_ids(blocks(3, 4)) else None

    told = Told(Fold(ENGINE, BLOCK, root, find))
    head = PackedKeys(keys[: 3 * KEY_BYTES])
    told.index.apply(Held(ENGINE, Tier.GPU, BlockKey(0), head, Source.PICK))
    told.tell(stored([4, 5], blocks(3, 5), 3))
    assert (told.depth(IDS), told.fold.orphans) == ((5, 5), 0)
    told.tell(stored([6], blocks(5, 6), 5), stored([9], blocks(0, 1), 8))
    assert (told.depth(IDS), told.fold.orphans) == ((6, 6), 1)
    assert len(asked) == 2
    told.tell(removed(3))
    assert told.depth(IDS) == (2, 2)


@pytest.mark.parametrize("array", [False, True])
def test_adapter_and_salt_are_part_of_the_root_as_for_requests(array: bool) -> None:
    told = Told()
    events = [
        stored([1, 2], blocks(0, 2), extra_keys=[None, None]),
        stored([3, 4], blocks(0, 2), extra_keys=[["s"], None]),
        stored([5, 6], blocks(0, 2), lora_name="sql", extra_keys=[["sql"], ["sql"]]),
        stored([7, 8], blocks(0, 2), lora_name="sql", extra_keys=[["sql", "s"], ["sql"]]),
    ]
    told.tell(*(as_array(event) if array else event for event in events))
    for adapter, salt in (("", ""), ("", "s"), ("sql", ""), ("sql", "s")):
        assert told.depth(IDS, adapter, salt) == (2, 2)
    told.tell(removed(7, 8))
    assert told.depth(IDS, "sql", "s") == (0, 0)
    assert told.depth(IDS, "sql") == (2, 2)


def test_sglang_says_the_salt_with_every_event() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1), metadata={"cache_salt": "s"}))
    told.tell(stored([2], blocks(1, 2), 1, metadata={"cache_salt": "s"}))
    assert (told.depth(IDS, salt="s"), told.depth(IDS)) == ((2, 2), (0, 0))


def test_an_adapter_of_which_only_the_number_is_known_is_no_prompts_block() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1), lora_id=3), stored([2], blocks(1, 2), 1, lora_id=3))
    assert (told.depth(IDS), told.fold.orphans, told.fold.blocks) == ((0, 0), 0, 2)
    assert told.fold.skipped == {"unknown_adapter": 1}
    told.tell(removed(2, 1))
    assert told.fold.blocks == 0


@pytest.mark.parametrize("image", [["hash", 3], "hash", b"embedding"])
def test_from_an_image_on_no_tokens_name_a_block(image: object) -> None:
    told = Told()
    told.tell(stored([1, 2, 3], blocks(0, 3), extra_keys=[["s"], [image], None]))
    told.tell(stored([4], blocks(3, 4), 3, extra_keys=[None]))
    assert told.depth(IDS, salt="s") == (1, 1)
    assert (told.fold.orphans, told.fold.skipped) == (0, {"media": 2})
    assert told.index.stats().blocks == 1


def test_an_image_beside_an_adapter_and_a_salt_is_none_of_them() -> None:
    told = Told()
    told.tell(stored([1], blocks(0, 1), lora_name="sql", extra_keys=[["sql", ["i", 0], "s"]]))
    assert told.index.stats().blocks == 0
    assert told.fold.skipped == {"media": 1}


def test_of_several_groups_the_first_that_is_a_prefix_counts() -> None:
    told = Told()
    full = {"kv_cache_spec_kind": "full_attention"}
    told.tell(
        stored([1, 2], blocks(0, 2), group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored([1, 2], blocks(0, 2), group_idx=1, **full),
        stored([1, 2], blocks(0, 2), group_idx=2, **full),
    )
    assert told.depth(IDS) == (2, 2)
    told.tell(removed(1, 2, group_idx=0), removed(1, 2, group_idx=2))
    assert told.depth(IDS) == (2, 2)
    told.tell(removed(2, group_idx=1))
    assert told.depth(IDS) == (1, 1)


@pytest.mark.parametrize("page", [1, 2, 8])
def test_pages_smaller_than_a_block_are_gathered_and_orphan_nobody(page: int) -> None:
    told = Told()
    pages = 3 * BLOCK // page
    parent = None
    for number in range(pages):
        ids = IDS[number * page : (number + 1) * page]
        told.tell(stored([number + 1], ids, parent, block_size=page))
        parent = number + 1
        assert told.depth(IDS) == ((number + 1) * page // BLOCK,) * 2
    assert told.fold.orphans == 0
    told.tell(removed(pages))
    assert told.depth(IDS) == (2, 2)


def test_pages_that_are_gone_leave_nothing_behind() -> None:
    told = Told()
    told.tell(stored(list(range(1, 33)), blocks(0, 2), block_size=1))
    told.tell(removed(*range(32, 0, -1)))
    assert told.fold.blocks == 0
    assert told.fold._pages._begun == {}


def test_a_branch_inside_a_block_has_a_block_of_its_own() -> None:
    told = Told()
    half = BLOCK // 2
    other = IDS[:half] + [7] * half
    told.tell(stored([1, 2], IDS[:BLOCK], block_size=half))
    told.tell(stored([3], other[half:], 1, block_size=half))
    assert (told.depth(IDS), told.depth(other)) == ((1, 1), (1, 1))
    told.tell(removed(2))
    assert (told.depth(IDS), told.depth(other)) == ((0, 0), (1, 1))


@pytest.mark.parametrize("page", [3, 32, 0])
def test_pages_that_do_not_make_up_a_block_are_left_out(page: int) -> None:
    told = Told()
    told.tell(stored([1] * (page and 1), IDS[:page], block_size=page))
    assert told.fold.blocks == 0
    assert told.fold.skipped == ({"block_size": 1} if page else {})


def test_an_engine_whose_removals_are_missing_cannot_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extproc.engines.events.fold.MAX_BLOCKS", 4)
    assert MAX_BLOCKS > 1_000_000
    told = Told()
    told.tell(stored([1, 2, 3, 4], blocks(0, 4)), stored([5], blocks(4, 5), 4))
    assert (told.fold.blocks, told.fold.skipped) == (4, {"too_many": 1})


def prompts() -> st.SearchStrategy[list[int]]:
    """Of a few blocks, with shared heads and branches within a block."""
    quarter = st.sampled_from([[1] * 4, [2] * 4])
    return st.lists(quarter, min_size=4, max_size=24).map(
        lambda parts: [token for part in parts for token in part]
    )


STEPS = st.lists(
    st.tuples(prompts(), st.integers(0, 5), st.integers(0, 3), st.sampled_from(list(Tier))),
    max_size=30,
)


@settings(CALM, max_examples=60)
@given(STEPS, st.data(), st.sampled_from([BLOCK, 8, 4]))
def test_after_any_events_the_index_holds_what_the_engine_does(
    steps: Sequence[tuple[list[int], int, int, Tier]], data: st.DataObject, page: int
) -> None:
    """Small pages on the GPU alone: that a block is in the tier of its last page is a guess."""
    told, cache = Told(), Cache()
    seen: list[list[int]] = []
    for ids, start, count, tier in steps:
        tier = tier if page == BLOCK else Tier.GPU
        pages = len(ids) // page
        known = [
            at for at in range(pages) if all(_anywhere(cache, ids, i, page) for i in range(at))
        ]
        first = known[min(start, len(known) - 1)] if known else 0
        told.tell(cache.store(ids, first, min(first + count + 1, pages), tier, page))
        seen.append(ids)
        held = sorted(key for key, copies in cache.copies.items() if copies > 0)
        leaves = [key for key in held if not _has_child(cache, key[1])]
        for key in data.draw(st.lists(st.sampled_from(leaves), max_size=2)) if leaves else []:
            if cache.copies[key] > 0:
                told.tell(cache.evict(*key))
        for ids in seen:
            expected = cache.depth(ids, Tier.GPU, page=page), cache.depth(ids, *Tier, page=page)
            assert told.depth(ids) == expected
    assert told.fold.orphans == 0
    again = Told(told.fold)
    for facts in told.fold.restate():
        for fact in facts:
            again.index.apply(fact)
    for ids in seen:
        assert again.depth(ids) == told.depth(ids)
    assert again.index.held_blocks(ENGINE) == told.index.held_blocks(ENGINE)


def _anywhere(cache: Cache, ids: list[int], page_number: int, page: int) -> bool:
    return any(cache.holds(tier, ids[: (page_number + 1) * page]) for tier in Tier)


def _has_child(cache: Cache, engine_hash: int) -> bool:
    """Whether a block below this one is held: engines evict leaves first."""
    prefix = next(ids for ids, number in cache.names.items() if number == engine_hash)
    return any(
        len(ids) > len(prefix) and ids[: len(prefix)] == prefix
        for ids, number in cache.names.items()
        if any(cache.copies[tier, number] > 0 for tier in Tier)
    )
