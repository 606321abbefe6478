"""Snapshots: what is in them, that they show one moment, and what becomes of damaged ones."""

from array import array
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack
from msgspec.structs import replace

from extproc.index import (
    FOLD_VERSION,
    Bounds,
    Capacity,
    Chunk,
    Cleared,
    Dropped,
    Edges,
    Expired,
    Fact,
    Head,
    Held,
    InstanceState,
    Joined,
    Left,
    Plane,
    PrefixIndex,
    SnapshotError,
    Source,
    Tier,
)
from extproc.index.scope import BLOCK_BYTES
from extproc.index.snapshot import ALL, CHUNK_BYTES, SOME
from extproc.index.tree import MAX_EDGE
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys
from tests.index.chains import A, B, C, depths, held, index_of, keys, packed
from tests.index.test_same_everywhere import history

TEXT = "hello you"
NAMES = {0: "", **{key: TEXT[: depth + 1] for depth, key in enumerate(keys(TEXT))}}


def loaded(chunks: list[Chunk], bounds: Bounds | None = None) -> PrefixIndex:
    index = PrefixIndex(bounds)
    deque(index.load(chunks), maxlen=0)
    return index


def drained(index: PrefixIndex) -> PrefixIndex:
    while index.step():
        pass
    return index


def one(prompt: str, block: int) -> PackedKeys:
    return PackedKeys(keys(prompt)[block].to_bytes(8, "little"))


def story() -> PrefixIndex:
    """Two edges, a hole, two tiers, a tenant, a fact that was refused."""
    index = index_of(A, B, capacity=40)
    index.apply(held(A, "hello you", tenant="blue"))
    index.apply(held(B, "hello", source=Source.EVENT))
    index.apply(held(B, "he", tier=Tier.CPU, source=Source.EVENT))
    index.apply(Dropped(A, Tier.GPU, one("hello you", 3), Source.EVENT))
    index.apply(Left(C))
    return index


def ints(kind: str, column: bytes) -> list[int]:
    return array(kind, column).tolist()


def readable(chunk: Edges) -> list[tuple[str, str, str, list[tuple[object, ...]]]]:
    """Parent, last block and tenant of every edge, and its rows."""
    holders, stamps = ints("I", chunk.holders), ints("Q", chunk.stamps)
    planes = [ints("i", plane.blocks) or [0] * len(holders) for plane in chunk.planes]
    rows = iter(zip(holders, stamps, chunk.tails, *planes, strict=True))
    found, at = [], 0
    for number, (size, parent) in enumerate(
        zip(ints("I", chunk.sizes), ints("Q", chunk.parents), strict=True)
    ):
        at += size
        last = ints("Q", chunk.keys[8 * at - 8 : 8 * at])[0]
        its_rows = [next(rows) for _ in range(ints("I", chunk.rows)[number])]
        found.append((NAMES[parent], NAMES[last], chunk.tenants[number], its_rows))
    return sorted(found)


def test_a_snapshot_is_plain_columns_of_edges_and_of_who_holds_them() -> None:
    index = story()
    head, *rest = index.snapshot()
    assert head == Head(
        FOLD_VERSION,
        position=9,
        digest=index.digest,
        blocks=9,
        edges=2,
        tails=4,
        instances=(InstanceState(A, 16, "", (40, None)), InstanceState(B, 16, "", (40, None))),
        evicted={},
        refused={"unknown_instance": 1},
    )
    (chunk,) = (chunk for chunk in rest if isinstance(chunk, Edges) and chunk.sizes)
    assert readable(chunk) == [
        # instance, stamp, tails, held on GPU, on CPU, confirmed on GPU, on CPU
        ("", "he", "blue", [(0, 5, 0, ALL, 0, 0, 0), (1, 7, 0b11, ALL, ALL, ALL, ALL)]),
        ("he", "hello you", "blue", [(0, 5, 1, SOME, 0, 0, 0), (1, 6, 1, 3, 0, 3, 0)]),
    ]
    assert [plane.holes for plane in chunk.planes] == [(bytes([0b1111101]),), (), (), ()]


def test_a_snapshot_that_is_loaded_is_the_index_it_was_taken_of() -> None:
    index = story()
    again = loaded(list(index.snapshot()))
    assert again.digest == index.digest
    assert again.stats() == drained(index).stats()
    assert again.position == index.position
    assert again.match(packed(TEXT)) == index.match(packed(TEXT))


def test_the_same_index_gives_the_same_snapshot() -> None:
    index = story()
    assert list(index.snapshot()) == list(index.snapshot())
    assert list(loaded(list(index.snapshot())).snapshot()) == list(index.snapshot())


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(9_000 * BLOCK_BYTES, 5_000 * BLOCK_BYTES)])
def test_a_long_history_goes_on_the_same_after_every_restart(bounds: Bounds) -> None:
    """And the digest, which is kept up fact by fact, is the one that is counted anew on loading."""
    index, restarted = PrefixIndex(bounds), PrefixIndex(bounds)
    facts = history(4000)
    for start in range(0, len(facts), 500):
        for fact in facts[start : start + 500]:
            index.apply(fact)
            restarted.apply(fact)
        drained(index)
        restarted = loaded(list(drained(restarted).snapshot()), bounds)
        assert restarted.digest == index.digest
        one, other = index.stats(), restarted.stats()
        assert (one.held, one.blocks, one.evicted, one.refused) == (
            other.held,
            other.blocks,
            other.evicted,
            other.refused,
        )


def test_a_snapshot_shows_the_moment_of_its_first_piece_whatever_happens_meanwhile() -> None:
    index = PrefixIndex()
    facts = history(3000)
    for fact in facts[:2000]:
        index.apply(fact)
    drained(index)
    then, position = index.digest, index.position
    pieces: list[Chunk] = []
    snapshot = index.snapshot()
    pieces.append(next(snapshot))
    later = iter(facts[2000:])
    for fact in later:
        index.apply(fact)
        piece = next(snapshot, None)
        if piece is None:
            break
        pieces.append(piece)
    assert len(pieces) > 10
    assert index.digest != then
    again = loaded(pieces)
    assert (again.digest, again.position) == (then, position)
    for fact in facts[2000 : 2000 + index.position - position]:
        again.apply(fact)
    assert drained(again).digest == drained(index).digest


@pytest.mark.parametrize(
    "fact",
    [
        held(A, "hello you there", after=9),
        held(B, "hello you", after=5),
        held(B, "hello you", after=5, source=Source.EVENT),
        held(B, "hello world"),
        held(A, "hell", after=4),
        held(A, "hell", after=4, source=Source.EVENT),
        held(A, "hello you", after=4, tier=Tier.CPU, source=Source.EVENT),
        held(C, "quite another prompt that is long"),
        Dropped(A, Tier.GPU, one(TEXT, 8), Source.EVENT),
        Dropped(B, Tier.GPU, one(TEXT, 2), Source.EVENT),
        Dropped(B, Tier.CPU, packed("he"), Source.EVENT),
        Expired(A, packed(TEXT)),
        Capacity(A, Tier.GPU, 2),
        Joined(A, 32),
        Left(B),
    ],
    ids=lambda fact: type(fact).__name__.lower(),
)
def test_no_change_of_an_edge_that_is_not_saved_yet_is_in_the_snapshot(fact: Fact) -> None:
    index = story()
    index.apply(Joined(C, 16))
    index.apply(held(A, "hello, again"))
    drained(index)
    then = index.digest
    snapshot = index.snapshot()
    pieces = [next(snapshot)]
    index.apply(fact)
    pieces += snapshot
    again = loaded(pieces)
    assert again.digest == then
    again.apply(fact)
    for both in (index, again):
        both.apply(Capacity(A, Tier.GPU, 5))
        both.apply(held(B, "hello you two"))
        drained(both)
    assert again.digest == index.digest


def test_an_instance_that_leaves_while_it_is_saved_is_in_the_snapshot_whole() -> None:
    index = index_of(A, B)
    for number in range(600):
        index.apply(held(A, chr(0x4E00 + number) + "xyz"))
    snapshot = index.snapshot()
    pieces = [next(snapshot)]
    index.apply(Left(A))
    index.apply(Joined(C, 16))
    for number in range(600):
        index.apply(held(C, chr(0x4E00 + number) + "xyz"))
        index.step()
    pieces += snapshot
    again = loaded(pieces)
    assert [instance.name for instance in again.instances()] == [A, B]
    assert again.held_blocks(A) == 2400
    drained(index)
    assert [index.held_blocks(name) for name in (A, B, C)] == [0, 0, 2400]


def test_facts_are_folded_and_answered_at_once_while_a_snapshot_is_taken() -> None:
    index = story()
    snapshot = index.snapshot()
    next(snapshot)
    index.apply(held(B, "hello you"))
    assert index.backlog == 0
    assert depths(index, "hello you")["b"] == 9
    snapshot.close()


def test_upkeep_waits_for_a_snapshot_and_goes_on_after_one_that_was_given_up() -> None:
    index = index_of(A, B)
    for number in range(300):
        index.apply(held(A, chr(0x4E00 + number)))
    snapshot = index.snapshot()
    next(snapshot)
    index.apply(Cleared(A, Source.EVENT))
    assert not drained(index).step()
    assert index.stats().blocks == 300
    snapshot.close()
    assert drained(index).stats().blocks == 0
    assert index.instances()[1].slot == 2, "a slot of its own, while the old one was swept"
    index.apply(held(B, "x"))
    assert index.tree.store.end == 301, "ids are used again"


def test_there_is_no_snapshot_beside_another_one_or_a_backlog() -> None:
    index = story()
    first = index.snapshot()
    next(first)
    with pytest.raises(ValueError):
        next(index.snapshot())
    first.close()
    letters = "".join(chr(0x4E00 + number) for number in range(200))
    for letter in letters:
        index.apply(held(A, letter))
    gone = PackedKeys(b"".join(packed(letter) for letter in letters))
    index.apply(Dropped(A, Tier.GPU, gone, Source.EVENT))
    index.apply(held(A, "hello"))
    assert index.backlog
    with pytest.raises(ValueError):
        next(index.snapshot())
    assert list(drained(index).snapshot())


@pytest.mark.parametrize("change", ["reset", "load"])
def test_a_snapshot_of_an_index_that_became_another_one_ends_with_an_error(change: str) -> None:
    index = story()
    other = list(index.snapshot())
    snapshot = index.snapshot()
    next(snapshot)
    if change == "reset":
        index.reset()
    else:
        deque(index.load(other), maxlen=0)
    with pytest.raises(SnapshotError):
        list(snapshot)
    assert list(index.snapshot())


def test_an_index_answers_as_it_was_until_the_last_slice_of_a_load() -> None:
    pieces = list(story().snapshot())
    index = index_of(C)
    index.apply(held(C, "hell"))
    load = index.load(pieces)
    seen = [depths(index, TEXT) for _ in load]
    assert len(seen) > 3
    assert seen == [{"c": 4}] * len(seen)
    assert depths(index, TEXT) == {"a": 3, "b": 5}


def test_a_load_that_is_given_up_changes_nothing() -> None:
    index = index_of(C)
    index.apply(held(C, "hell"))
    load = index.load(list(story().snapshot()))
    next(load)
    load.close()
    assert depths(index, TEXT) == {"c": 4}


def test_a_loaded_index_keeps_its_own_bounds() -> None:
    index = index_of(A)
    for number in range(20):
        index.apply(held(A, chr(0x4E00 + number) + "xyz"))
    again = loaded(list(index.snapshot()), Bounds(pool_bytes=40 * BLOCK_BYTES))
    assert again.held_blocks(A) == 80
    again.apply(held(A, "new"))
    assert drained(again).held_blocks(A) == 40
    assert depths(again, "new") == {"a": 3}


def test_no_piece_is_too_large_with_512_holders_that_all_have_holes_in_both_tiers() -> None:
    names = [InstanceId(f"instance-{number}") for number in range(512)]
    index = index_of(*names)
    prompt = "".join(chr(0x4E00 + number) for number in range(MAX_EDGE))
    chain = PackedKeys(packed(prompt))
    for number, name in enumerate(names):
        for tier in Tier:
            index.apply(Held(name, tier, NO_BLOCK, chain, Source.EVENT))
            index.apply(Dropped(name, tier, one(prompt, 1 + number), Source.EVENT))
    pieces = [msgpack.encode(piece) for piece in index.snapshot()]
    assert max(map(len, pieces)) > CHUNK_BYTES // 2, "no hard case"
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert loaded([msgpack.decode(piece, type=Chunk) for piece in pieces]).digest == index.digest


def with_edges(change: Callable[[Edges], Edges]) -> Callable[[list[Chunk]], list[Chunk]]:
    return lambda pieces: [
        change(piece) if isinstance(piece, Edges) and piece.sizes else piece for piece in pieces
    ]


def with_head(**values: object) -> Callable[[list[Chunk]], list[Chunk]]:
    return lambda pieces: [replace(pieces[0], **values), *pieces[1:]]


DAMAGES: dict[str, Callable[[list[Chunk]], list[Chunk]]] = {
    "nothing": lambda pieces: [],
    "no head": lambda pieces: pieces[1:],
    "two heads": lambda pieces: [pieces[0], *pieces],
    "another version": with_head(version=FOLD_VERSION + 1),
    "another digest": with_head(digest=1),
    "room for nothing": with_head(blocks=-1),
    "room for too much": with_head(blocks=1 << 70),
    "room for too many edges": with_head(edges=1 << 70),
    "room for fewer edges than there are": with_head(edges=1),
    "room for fewer touches than there are": with_head(tails=1),
    "instances are missing": with_head(instances=()),
    "older than its facts": with_head(position=4),
    "edges are missing": lambda pieces: pieces[:1],
    "edges twice": lambda pieces: [*pieces, *pieces[1:]],
    "a column is cut": with_edges(lambda edges: replace(edges, sizes=edges.sizes[:-1])),
    "an edge is missing": with_edges(lambda edges: replace(edges, parents=edges.parents[:-8])),
    "keys are missing": with_edges(lambda edges: replace(edges, keys=edges.keys[:-8])),
    "an edge is empty": with_edges(
        lambda edges: replace(
            edges,
            sizes=array("I", [len(edges.keys) // 8, 0]).tobytes(),
        )
    ),
    "a row is missing": with_edges(lambda edges: replace(edges, holders=edges.holders[:-4])),
    "a stamp is missing": with_edges(lambda edges: replace(edges, stamps=edges.stamps[8:])),
    "a plane is missing": with_edges(lambda edges: replace(edges, planes=edges.planes[1:])),
    "tenants are missing": with_edges(lambda edges: replace(edges, tenants=("blue",))),
    "more blocks than the edge has": with_edges(
        lambda edges: replace(
            edges, planes=(Plane(array("i", [1 << 30] * 4).tobytes(), ()), *edges.planes[1:])
        )
    ),
    "a number that means nothing": with_edges(
        lambda edges: replace(
            edges, planes=(Plane(array("i", [-3] * 4).tobytes(), ()), *edges.planes[1:])
        )
    ),
    "holes are missing": with_edges(
        lambda edges: replace(edges, planes=(Plane(edges.planes[0].blocks, ()), *edges.planes[1:]))
    ),
    "holes beyond the edge": with_edges(
        lambda edges: replace(
            edges, planes=(Plane(edges.planes[0].blocks, (bytes(99) + b"x",)), *edges.planes[1:])
        )
    ),
    "a parent that is nowhere": with_edges(
        lambda edges: replace(edges, parents=b"12345678" * 2),
    ),
    "edges that are each other's parents": with_edges(
        lambda edges: replace(
            edges, parents=b"".join(keys(TEXT)[b].to_bytes(8, "little") for b in (1, 8))
        )
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_and_the_index_stays_as_it_was(damage: str) -> None:
    pieces = list(story().snapshot())
    index = index_of(C)
    index.apply(held(C, "hell"))
    before = index.digest
    with pytest.raises(SnapshotError):
        deque(index.load(DAMAGES[damage](pieces)), maxlen=0)
    assert index.digest == before
    assert depths(index, TEXT) == {"c": 4}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_snapshot_with_any_bytes_changed_is_refused_or_is_the_same(data: st.DataObject) -> None:
    original = story()
    encoded = [bytearray(msgpack.encode(piece)) for piece in original.snapshot()]
    for _ in range(data.draw(st.integers(1, 3))):
        piece = data.draw(st.sampled_from(encoded))
        piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(st.integers(0, 255))
    try:
        pieces = [msgpack.decode(piece, type=Chunk) for piece in encoded]
    except ValueError:
        return
    if isinstance(pieces[0], Head) and pieces[0].blocks > 1 << 20:
        return  # memory that there is not, which is refused only once it is asked for
    index = PrefixIndex()
    try:
        deque(index.load(pieces), maxlen=0)
    except SnapshotError:
        assert index.digest == 0
    else:
        assert index.digest == original.digest
