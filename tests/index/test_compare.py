"""Two indexes are compared by what is in them."""

from copy import copy
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.index import (
    Blocks,
    Capacity,
    Dropped,
    PrefixIndex,
    Source,
    Tier,
    overview,
    overviews_differ,
    rows,
    rows_differ,
)
from extproc.terms import InstanceId, PackedKeys
from tests.index.chains import A, B, C, held, index_of, keys


def edges(index: PrefixIndex):
    return rows(index, 7, 1, 10_000)[0]


def test_equal_indexes_do_not_differ() -> None:
    one, other = index_of(A, B), index_of(A, B)
    for index in (one, other):
        index.apply(held(A, "the same prompt"))
    assert overviews_differ(overview(one), overview(other)) == {}
    assert list(rows_differ(edges(one), edges(other))) == []


def test_how_edges_are_cut_is_no_difference() -> None:
    index = index_of(A, B)
    index.apply(held(A, "a prompt"))
    hole = PackedKeys(keys("a prompt")[6].to_bytes(8, "little"))
    index.apply(Dropped(A, Tier.GPU, hole, Source.EVENT))
    index.apply(held(B, "a prompt"))
    (whole,) = edges(index)
    upper, lower = copy(whole), copy(whole)
    upper |= {"last": "cut", "blocks": 3}
    lower |= {"after": "cut", "first": "next", "blocks": 5}
    upper["holders"] = [{**holder, "has": {"gpu": 3}} for holder in whole["holders"]]
    parts: list[Blocks] = ["17", 5]
    lower["holders"] = [
        {**holder, "has": {"gpu": part}}
        for holder, part in zip(whole["holders"], parts, strict=True)
    ]
    assert list(rows_differ([whole], [lower, upper])) == []


def test_an_instance_that_holds_less_is_named_with_both_counts() -> None:
    one, other = index_of(A, B), index_of(A, B)
    for index in (one, other):
        index.apply(held(A, "a prompt"))
        index.apply(held(B, "a prompt"))
    gone = PackedKeys(b"".join(key.to_bytes(8, "little") for key in keys("a prompt")[6:]))
    other.apply(Dropped(B, Tier.GPU, gone, Source.EVENT))
    assert overviews_differ(overview(one), overview(other)) == {"b": {"gpu_blocks": (8, 6)}}
    (found,) = rows_differ(edges(one), edges(other))
    assert (found.run.depth, found.run.blocks) == (0, 8)
    assert found.has == {"b": {"gpu": (8, 6)}}


def test_the_same_number_of_other_blocks_differs() -> None:
    one, other = index_of(A), index_of(A)
    for index, hole in ((one, 2), (other, 3)):
        index.apply(held(A, "a prompt"))
        key = PackedKeys(keys("a prompt")[hole].to_bytes(8, "little"))
        index.apply(Dropped(A, Tier.GPU, key, Source.EVENT))
    assert overviews_differ(overview(one), overview(other)) == {}
    (found,) = rows_differ(edges(one), edges(other))
    assert found.has == {"a": {"gpu": (7, 7)}}


def test_a_tier_and_a_confirmation_are_content() -> None:
    one, other = index_of(A), index_of(A)
    for index in (one, other):
        index.apply(held(A, "a prompt"))
    other.apply(held(A, "a prompt", source=Source.EVENT))
    other.apply(held(A, "a p", tier=Tier.CPU, source=Source.PICK))
    (found,) = rows_differ(edges(one), edges(other))
    assert found.has == {"a": {"gpu_confirmed": (0, 8), "cpu": (0, 3), "touched": (2, 4)}}


def test_the_order_of_use_is_content() -> None:
    one, other = index_of(A), index_of(A)
    for index, prompts in ((one, ("first", "then")), (other, ("then", "first"))):
        for prompt in prompts:
            index.apply(held(A, prompt))
    assert overviews_differ(overview(one), overview(other)) == {}
    found = {run.run.blocks: run.has for run in rows_differ(edges(one), edges(other))}
    assert found == {4: {"a": {"touched": (3, 2)}}, 5: {"a": {"touched": (2, 3)}}}


def test_what_only_one_side_knows_is_found_below_the_heads() -> None:
    one, other = index_of(A, B), index_of(A, C)
    for index in (one, other):
        index.apply(held(A, "shared, then this"))
        index.apply(held(A, "shared, then that"))
    one.apply(held(B, "shared, then that and more"))
    differing = overviews_differ(overview(one), overview(other))
    assert differing["b"]["block_size"] == (16, None)
    assert differing["c"]["block_size"] == (None, 16)
    found = list(rows_differ(edges(one), edges(other)))
    assert [run.run.depth for run in found] == sorted(run.run.depth for run in found)
    assert {name for run in found for name in run.has} == {"b"}
    assert sum(run.has["b"]["gpu"][0] for run in found) == len("shared, then that and more")


def test_a_capacity_that_differs_is_seen_in_the_overview_alone() -> None:
    one, other = index_of(A, capacity=10), index_of(A, capacity=10)
    other.apply(Capacity(A, Tier.GPU, 11))
    assert overviews_differ(overview(one), overview(other)) == {"a": {"gpu_capacity": (10, 11)}}
    assert list(rows_differ(edges(one), edges(other))) == []


prompts = st.text("ab", min_size=1, max_size=6)
holds = st.tuples(st.sampled_from([A, B]), prompts, st.booleans())


def content(index: PrefixIndex) -> set[tuple[str, str, int]]:
    """(instance, plane, key) of all that anybody holds, from the prompts that there can be."""
    found = set()
    for size in range(1, 7):
        for letters in product("ab", repeat=size):
            place = index.tree.find(keys("".join(letters))[-1])
            if place is not None:
                edge, block = place
                for instance in index.instances():
                    for plane in range(4):
                        if edge.blocks(plane, instance.slot) >> block & 1:
                            found.add((str(instance.name), str(plane), keys("".join(letters))[-1]))
    return found


@settings(deadline=None)
@given(st.lists(holds, max_size=8), st.lists(holds, max_size=8))
def test_who_holds_what_differs_in_rows_exactly_where_it_differs_block_by_block(
    one: list[tuple[InstanceId, str, bool]], other: list[tuple[InstanceId, str, bool]]
) -> None:
    indexes = []
    for story in (one, other):
        index = index_of(A, B)
        for instance, prompt, engine_said_so in story:
            source = Source.EVENT if engine_said_so else Source.PICK
            index.apply(held(instance, prompt, source=source))
        indexes.append(index)
    left, right = indexes
    differing = [
        plane
        for run in rows_differ(edges(left), edges(right))
        for planes in run.has.values()
        for plane in planes
        if plane != "touched"
    ]
    assert bool(differing) == (content(left) != content(right))
    if not list(rows_differ(edges(left), edges(right))) and left.position == right.position:
        assert left.digest == right.digest
