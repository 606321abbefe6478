"""An index as pieces of bytes: what comes back is what was saved, or nothing."""

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.index import (
    FOLD_VERSION,
    Capacity,
    Dropped,
    Fact,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.log import PIECE_BYTES, BadSnapshot, IndexSnapshots, fingerprint
from extproc.log.snapshot import FORMAT, MAGIC, seal, unseal
from tests.index.chains import A, B, C, held, index_of, packed

SECRET = b"one secret"


def snapshots(index: PrefixIndex, pool: str = "p", secret: bytes = SECRET) -> IndexSnapshots:
    return IndexSnapshots(pool, index, lambda: secret)


def saved(index: PrefixIndex, pool: str = "p", secret: bytes = SECRET) -> list[bytes]:
    return [piece for piece in snapshots(index, pool, secret).save() if piece]


def loaded(pieces: Iterable[bytes], pool: str = "p", secret: bytes = SECRET) -> PrefixIndex:
    index = PrefixIndex()
    for _ in snapshots(index, pool, secret).load(pieces):
        pass
    return index


def story() -> PrefixIndex:
    index = index_of(A, B, capacity=40)
    index.apply(held(A, "system: hello", source=Source.EVENT))
    index.apply(held(B, "system: good day", tenant="blue"))
    index.apply(held(B, "system", tier=Tier.CPU, source=Source.EVENT))
    return index


def refusal(pieces: Iterable[bytes], pool: str = "p", secret: bytes = SECRET) -> str:
    """Why they are refused; nothing is left of them then."""
    index = index_of(C)
    with pytest.raises(BadSnapshot) as error:
        for _ in snapshots(index, pool, secret).load(pieces):
            pass
    assert (index.position, index.instances()) == (0, [])
    return str(error.value)


def test_what_was_saved_is_loaded_and_goes_on_the_same() -> None:
    before = story()
    after = loaded(saved(before))
    for index in (before, after):
        index.apply(held(A, "system: hello again", after=13))
        index.apply(Capacity(B, Tier.GPU, 10))
    assert after.digest == before.digest
    assert after.position == before.position
    assert after.match(packed("system: good day")) == before.match(packed("system: good day"))


def test_an_empty_index_is_a_snapshot_too() -> None:
    assert loaded(saved(PrefixIndex())).digest == PrefixIndex().digest


def test_pieces_are_small() -> None:
    index = index_of(A, B)
    for number in range(2_000):
        index.apply(held(A, f"{number:04d}" + "x" * 60))
    pieces = saved(index)
    assert len(pieces) > 5
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_facts_that_come_while_it_is_saved_are_not_in_it() -> None:
    index = index_of(A)
    for number in range(2_000):
        index.apply(held(A, f"{number:04d}"))
    digest = index.digest
    pieces = []
    for number, piece in enumerate(snapshots(index).save()):
        pieces.append(piece)
        index.apply(held(A, f"{number % 7:04d} and more"))
    assert loaded(pieces).digest == digest != index.digest


def test_a_backlog_is_worked_off_first_in_steps_without_result() -> None:
    index = index_of(A)
    for number in range(3_000):
        index.apply(held(A, f"{number:04d}"))
    index.apply(Capacity(A, Tier.GPU, 1))
    assert index.backlog
    pieces = list(snapshots(index).save())
    assert not index.backlog
    assert b"" in pieces
    assert loaded(piece for piece in pieces if piece).digest == index.digest


def test_a_save_that_is_given_up_leaves_room_for_the_next() -> None:
    index = story()
    giving_up = snapshots(index).save()
    next(giving_up)
    giving_up.close()
    assert loaded(saved(index)).digest == index.digest


def test_every_byte_counts() -> None:
    pieces = saved(story())
    assert len(pieces) > 3
    for number, piece in enumerate(pieces):
        for place in range(len(piece)):
            for flip in (0x01, 0x80):
                broken = bytearray(piece)
                broken[place] ^= flip
                assert refusal([*pieces[:number], bytes(broken), *pieces[number + 1 :]])


def test_every_piece_counts_whole_once_and_in_its_place() -> None:
    pieces = saved(story())
    for number, piece in enumerate(pieces):
        for size in range(len(piece)):
            assert refusal([*pieces[:number], piece[:size], *pieces[number + 1 :]])
        assert refusal([*pieces[:number], piece + b"\0", *pieces[number + 1 :]])
        assert refusal([*pieces[:number], *pieces[number + 1 :]])
        assert refusal([*pieces[: number + 1], piece, *pieces[number + 1 :]])
        assert refusal(pieces[:number])
    assert refusal([*pieces, pieces[-1]])
    assert refusal([pieces[0], pieces[2], pieces[1], *pieces[3:]])


def test_pieces_that_changed_places_are_noticed_whatever_is_in_them() -> None:
    index = index_of(A, B)
    for number in range(2_000):
        index.apply(held(A, f"{number:04d}" + "x" * 60))
    pieces = saved(index)
    pieces[3], pieces[4] = pieces[4], pieces[3]
    assert refusal(pieces) == "piece 3 is damaged"


def test_what_is_foreign_is_named() -> None:
    pieces = saved(story())
    assert refusal(pieces, pool="q") == "of the pool 'p', not of 'q'"
    assert "another secret" in refusal(pieces, secret=b"another")
    assert refusal([b"GIF89a and much more", *pieces]) == "piece 0 is damaged"
    assert refusal([seal(0, b"GIF89a"), *pieces[1:]]) == "no snapshot of Homing"
    newer = MAGIC + (FORMAT + 1).to_bytes(2, "little") + b"whatever"
    assert refusal([seal(0, newer)]) == f"of format {FORMAT + 1}; this Homing reads {FORMAT}"
    header = {"pool": "p", "fold": FOLD_VERSION + 1, "keyed": fingerprint(SECRET)}
    assert f"of fold version {FOLD_VERSION + 1}" in refusal([first(header)])
    assert refusal([first({"pool": "p"})]).startswith("header: ")
    assert refusal([]) == "no snapshot of Homing"


def first(header: dict[str, object]) -> bytes:
    return seal(0, MAGIC + FORMAT.to_bytes(2, "little") + msgspec.msgpack.encode(header))


def test_fields_of_a_later_version_are_left_alone() -> None:
    index = story()
    pieces = saved(index)
    header = {"pool": "p", "fold": FOLD_VERSION, "keyed": fingerprint(SECRET), "mood": "good"}
    later = [first(header)]
    for number, piece in enumerate(pieces[1:], 1):
        body = {**msgspec.msgpack.decode(unseal(number, piece)), "colour": [1, 2]}
        later.append(seal(number, msgspec.msgpack.encode(body)))
    assert loaded(later).digest == index.digest


@given(st.binary(max_size=200), st.integers(0, 3))
def test_no_bytes_with_a_right_checksum_are_more_than_refused(body: bytes, number: int) -> None:
    pieces = saved(story())
    pieces[number] = seal(number, body)
    assert refusal(pieces)


def test_a_fingerprint_tells_secrets_apart() -> None:
    assert fingerprint(b"a") != fingerprint(b"b")
    assert len(fingerprint(b"a")) == 16


prompts = st.text("ab", min_size=1, max_size=12)
facts = st.one_of(
    st.builds(
        held,
        st.sampled_from([A, B]),
        prompts,
        tier=st.sampled_from(Tier),
        source=st.sampled_from(Source),
        tenant=st.sampled_from(["", "blue"]),
    ),
    st.builds(
        Dropped,
        st.sampled_from([A, B]),
        st.sampled_from(Tier),
        prompts.map(packed),
        st.just(Source.EVENT),
    ),
    st.builds(Capacity, st.sampled_from([A, B]), st.sampled_from(Tier), st.integers(0, 20)),
)


@given(st.lists(facts, max_size=40), st.lists(facts, max_size=10))
def test_any_state_comes_back_and_goes_on_the_same(before: list[Fact], after: list[Fact]) -> None:
    index = index_of(A, B)
    for fact in before:
        index.apply(fact)
    again = loaded(saved(index))
    for fact in after:
        index.apply(fact)
        again.apply(fact)
    assert again.digest == index.digest
    assert again.stats().evicted == index.stats().evicted
