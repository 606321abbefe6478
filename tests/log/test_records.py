"""Facts ↔ records: nothing is lost, and what is not as it was written is known as such."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.index import Dropped, Fact, Held, Joined, Left, Source, Tier
from extproc.log.records import (
    MAX_KEYS,
    MAX_RECORD_BYTES,
    RECORD_VERSION,
    BadRecord,
    Signer,
    decode,
    encode,
    pieces,
    seal,
    size,
    unseal,
)
from extproc.terms import NO_BLOCK, BlockKey, InstanceId, PackedKeys
from proto_gen import factlog_pb2 as pb
from tests.index.chains import A, held
from tests.log.strategies import facts

SIGNER = Signer(b"secret")
PLACE = b"0000000000000001/0000000001"


@given(st.lists(facts, max_size=10))
def test_what_was_written_is_read(written: list[Fact]) -> None:
    record = seal(SIGNER, PLACE, encode(written))
    read = decode(unseal(SIGNER, PLACE, record))
    assert (read.version, read.facts, read.skipped) == (RECORD_VERSION, tuple(written), 0)


@given(facts)
def test_a_fact_takes_no_more_room_than_its_size_says(fact: Fact) -> None:
    empty = len(seal(SIGNER, PLACE, encode([])))
    assert len(seal(SIGNER, PLACE, encode([fact]))) <= empty + size(fact)


@given(st.lists(facts, min_size=1, max_size=3), st.data())
def test_a_record_that_was_changed_anywhere_is_refused(
    written: list[Fact], data: st.DataObject
) -> None:
    record = bytearray(seal(SIGNER, PLACE, encode(written)))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadRecord):
        unseal(SIGNER, PLACE, bytes(record))


@given(st.lists(facts, min_size=1, max_size=3), st.data())
def test_a_record_that_was_cut_is_refused(written: list[Fact], data: st.DataObject) -> None:
    record = seal(SIGNER, PLACE, encode(written))
    with pytest.raises(BadRecord):
        unseal(SIGNER, PLACE, record[: data.draw(st.integers(0, len(record) - 1))])


def test_a_record_counts_at_its_own_place_and_with_the_pools_secret_only() -> None:
    record = seal(SIGNER, PLACE, encode([Left(A)]))
    for signer, place in ((SIGNER, b"0000000000000001/0000000002"), (Signer(b"other"), PLACE)):
        with pytest.raises(BadRecord, match="checksum"):
            unseal(signer, place, record)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_a_bad_record(data: bytes) -> None:
    with suppress(BadRecord):
        assert decode(data).version >= 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fact: setattr(fact.held, "tier", 2),
        lambda fact: setattr(fact.held, "source", 4),
        lambda fact: setattr(fact.held, "keys", b"1234567"),
        lambda fact: setattr(fact.held, "keys", b"12345678" + bytes(8)),
        lambda fact: setattr(fact.held, "keys", b"12345678" * (MAX_KEYS + 1)),
        lambda fact: setattr(fact.held, "tenant", 1),
        lambda fact: setattr(fact, "instance", 1),
        lambda fact: fact.dropped.SetInParent() or setattr(fact.dropped, "tier", 9),
        lambda fact: setattr(fact.capacity, "blocks", 1 << 41),
        lambda fact: fact.joined.SetInParent(),
        lambda fact: setattr(fact.joined, "block_size", 1 << 21),
        lambda fact: setattr(fact.cleared, "source", 4),
        lambda fact: fact.ClearField("held"),
    ],
)
def test_a_fact_out_of_bounds_is_left_out_and_the_others_count(
    spoil: Callable[[pb.Fact], None],
) -> None:
    batch = pb.Batch.FromString(encode([held(A, "xyz"), Left(A)]))
    spoil(batch.facts[0])
    read = decode(batch.SerializeToString())
    assert (read.facts, read.skipped) == ((Left(A),), 1)


def test_keys_that_hold_a_zero_across_two_are_whole() -> None:
    keys = PackedKeys(b"\1" * 4 + bytes(4) + bytes(4) + b"\1" * 4)
    fact = Held(A, Tier.GPU, NO_BLOCK, keys, Source.PICK)
    assert decode(encode([fact])).facts == (fact,)


def test_what_a_later_version_adds_is_left_alone() -> None:
    """Fields and kinds of facts with numbers that this version does not know."""
    batch = pb.Batch(version=RECORD_VERSION + 1, instances=["a"])
    later = b"\xfa\x07\x02hi"  # field 127, two bytes
    known, kind = pb.Fact(), pb.Fact()
    known.held.MergeFromString(encode_held() + later)
    kind.MergeFromString(later)
    batch.facts.extend([known, kind])
    read = decode(batch.SerializeToString() + later)
    assert (read.version, read.skipped) == (RECORD_VERSION + 1, 1)
    assert read.facts == (held(A, "xyz"),)


def encode_held() -> bytes:
    return pb.Batch.FromString(encode([held(A, "xyz")])).facts[0].held.SerializeToString()


def test_a_fact_of_many_keys_becomes_several_that_say_the_same() -> None:
    keys = PackedKeys(b"".join((i + 1).to_bytes(8, "little") for i in range(2 * MAX_KEYS + 5)))
    parts = list(pieces(Held(A, Tier.GPU, BlockKey(77), keys, Source.ANSWER, "t")))
    assert all(isinstance(part, Held) and size(part) <= MAX_RECORD_BYTES for part in parts)
    assert b"".join(part.keys for part in parts) == keys  # type: ignore[union-attr]
    assert [part.parent for part in parts] == [77, MAX_KEYS, 2 * MAX_KEYS]  # type: ignore[union-attr]
    drops = list(pieces(Dropped(A, Tier.CPU, keys, Source.EVENT)))
    assert b"".join(part.keys for part in drops) == keys  # type: ignore[union-attr]
    assert {(type(part), part.instance) for part in drops} == {(Dropped, A)}


@pytest.mark.parametrize("tenant", ["x" * 10_000, "\ud800", "é" * 200])
def test_a_tenant_that_is_long_or_no_text_has_a_short_name(tenant: str) -> None:
    (first,) = pieces(held(A, "xyz", tenant=tenant))
    (second,) = pieces(held(A, "uv", tenant=tenant))
    (other,) = pieces(held(A, "xyz", tenant=tenant + "y"))
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert isinstance(other, Held)
    assert first.tenant == second.tenant != other.tenant
    assert decode(encode([first])).facts == (first,)


def test_the_largest_names_fit_a_record() -> None:
    name = InstanceId("x" * 512)
    fact = Joined(name, 16, "y" * 512)
    assert decode(encode([fact])).facts == (fact,)
    assert decode(encode([Left(InstanceId("x" * 513))])).skipped == 1
