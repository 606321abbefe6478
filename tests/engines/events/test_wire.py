"""Every encoding that vLLM's and SGLang's events have had is read, and nothing else is believed."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.engines.events import (
    END,
    AllCleared,
    Message,
    Removed,
    Stored,
    decode_batch,
    read_frames,
    split,
)
from extproc.errors import PeerViolation
from extproc.index import Tier
from extproc.prompt import pack_ids, unpack_ids
from tests.engines.events.engine import (
    CALM,
    CLEARED,
    as_array,
    decoded,
    one,
    payload,
    removed,
    stored,
)

IDS = list(range(100, 132))


def test_a_map_and_an_array_say_the_same() -> None:
    event = stored([1, 2], IDS, 7, lora_name="sql", extra_keys=[["sql"], ["sql"]], group_idx=0)
    assert one(event) == one(as_array(event))
    assert one(removed(1, group_idx=1)) == one(as_array(removed(1, group_idx=1)))
    assert one(CLEARED) == one(["AllBlocksCleared"]) == AllCleared()


@pytest.mark.parametrize("fields", range(5, 15))
def test_fields_that_a_version_does_not_have_yet_or_adds_at_the_end_do_not_matter(
    fields: int,
) -> None:
    event = as_array(stored([1, 2], IDS, 7), fields)
    read = one([*event, "new", {"newer": 1}] if fields == 14 else event)
    assert isinstance(read, Stored)
    assert (read.hashes, read.parent, unpack_ids(read.ids)) == ([1, 2], 7, IDS)
    assert (read.page, read.tier, read.adapter) == (16, Tier.GPU, "")


def test_sglang_before_media_has_five_fields_and_a_removal_one() -> None:
    read = one(["BlockStored", [-5], None, IDS[:16], 16, None])
    assert isinstance(read, Stored)
    assert read.tier is Tier.GPU
    assert one(["BlockRemoved", [-5]]) == Removed(read.hashes, Tier.GPU, None)


@pytest.mark.parametrize("rank", [None, 0, 3])
def test_a_batch_may_lack_its_rank(rank: int | None) -> None:
    assert decode_batch(payload(CLEARED, rank=rank)).rank == rank


@pytest.mark.parametrize("name", ["data_parallel_rank", "attn_dp_rank"])
def test_a_batch_may_be_a_map(name: str) -> None:
    batch = decode_batch(msgspec.msgpack.encode({"ts": 2, "events": [CLEARED], name: 1}))
    assert (batch.time, batch.events, batch.rank) == (2.0, [AllCleared()], 1)


def test_a_hash_is_its_low_64_bits_whether_signed_or_bytes() -> None:
    high = 0xFEDCBA9876543210
    for spelled in (high, high - (1 << 64), b"\x11" * 24 + high.to_bytes(8, "big")):
        read = one(stored([spelled], IDS[:16], spelled))
        assert isinstance(read, Stored)
        assert (read.hashes, read.parent) == ([high], high)


def test_one_unknown_or_bad_event_leaves_the_good_ones() -> None:
    batch = decoded(
        stored([1], IDS[:16]),
        {"type": "BlockMoved"},
        ["BlockTouched", 1],
        7,
        [],
        {"type": "BlockStored"},
        stored(["no"], IDS[:16]),
        stored([1], [-1] * 16),
        stored([1], [1 << 40] * 16),
        stored([1], IDS[:16], extra_keys=3),
        removed(1.5),
        removed(1, medium=5),
        removed(2),
    )
    assert [type(event) for event in batch.events] == [Stored, Removed]
    assert batch.skipped == {"unknown_tag": 2, "malformed": 9}


def test_bigrams_are_read_as_their_first_tokens() -> None:
    pairs = [[a, a + 1] for a in IDS[:16]]
    assert one(stored([1], pairs)) == one(stored([1], IDS[:16]))


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        ("GPU", Tier.GPU),
        ("gpu", Tier.GPU),
        (None, Tier.GPU),
        ("CPU", Tier.CPU),
        ("cpu", Tier.CPU),
        ("CPU_PINNED", Tier.CPU),
    ],
)
def test_media_are_tiers(medium: str | None, tier: Tier) -> None:
    for event in (one(stored([1], IDS[:16], medium=medium)), one(removed(1, medium=medium))):
        assert isinstance(event, Stored | Removed)
        assert event.tier is tier


@pytest.mark.parametrize("medium", ["DISK", "STORAGE", "EXTERNAL"])
def test_what_is_on_disks_or_elsewhere_is_left_out(medium: str) -> None:
    batch = decoded(stored([1], IDS[:16], medium=medium), removed(1, medium=medium))
    assert (batch.events, batch.skipped) == ([], {"medium": 2})
    assert decoded(stored([1], IDS[:16], locality="REMOTE")).skipped == {"medium": 1}


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_groups_that_are_prefixes_count_by_whatever_number(kind: str) -> None:
    read = one(stored([1], IDS[:16], group_idx=2, kv_cache_spec_kind=kind))
    assert isinstance(read, Stored)
    assert read.group == 2


@pytest.mark.parametrize(
    "event",
    [
        stored([1], IDS[:16], group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored([1], IDS[:16], group_idx=0, kv_cache_spec_kind="chunked_local_attention"),
        stored([1], IDS[:16], group_idx=0, kv_cache_spec_kind="mamba"),
        stored([1], IDS[:16], group_idx=0, kv_cache_spec_kind="sliding_window_mla"),
        stored([1], IDS[:16], group_idx=1),
        stored([1], IDS),
        stored([], IDS),
        stored([1], IDS[:16], component_type="swa"),
        removed(1, component_type="ComponentType.MAMBA"),
        [*as_array(stored([1], IDS[:16]), 6), "swa"],
        [*as_array(stored([1], IDS[:16]), 6), "mamba", {"cache_salt": "s"}],
        ["BlockRemoved", [1], "GPU", "swa"],
    ],
)
def test_groups_that_are_no_prefixes_are_left_out(event: object) -> None:
    batch = decoded(event)
    assert (batch.events, batch.skipped) == ([], {"not_a_prefix": 1})


def test_an_adapter_is_read_by_its_name_and_not_by_its_number() -> None:
    named = one(stored([1], IDS[:16], lora_id=1, lora_name="sql"))
    numbered = one(stored([1], IDS[:16], lora_id=1))
    assert isinstance(named, Stored)
    assert isinstance(numbered, Stored)
    assert (named.adapter, numbered.adapter) == ("sql", None)


@pytest.mark.parametrize(
    "event",
    [
        stored([1], IDS[:16], cache_salt="s"),
        stored([1], IDS[:16], metadata={"cache_salt": "s"}),
        [*as_array(stored([1], IDS[:16]), 6), {"cache_salt": "s"}],
        [*as_array(stored([1], IDS[:16]), 6), "full", {"cache_salt": "s"}],
        stored([1], IDS[:16], component_type="full", metadata={"cache_salt": "s"}),
    ],
)
def test_sglang_says_the_salt_of_its_blocks_in_fields_of_its_own(event: object) -> None:
    read = one(event)
    assert isinstance(read, Stored)
    assert (read.salt, read.adapter) == ("s", "")


def test_blocks_that_were_merely_read_again_are_marked() -> None:
    read = one(stored([1], IDS[:16], origin="REUSED"))
    new = one(stored([1], IDS[:16], origin="NEW"))
    assert isinstance(read, Stored)
    assert isinstance(new, Stored)
    assert (read.again, new.again) == (True, False)


def test_a_message_is_read_with_or_without_its_topic() -> None:
    seq = (7).to_bytes(8, "big")
    expected = Message(7, b"x")
    assert read_frames([b"topic", seq, b"x"]) == expected
    assert read_frames([b"", seq, b"x"]) == expected  # SGLang's replay
    assert read_frames([b"", b"topic", seq, b"x"]) == expected  # vLLM's
    assert read_frames([b"", (-1).to_bytes(8, "big", signed=True), b""]).seq == END


@pytest.mark.parametrize("frames", [[], [b"x"], [b"topic", b"7", b"x"], [b"a", b"b"]])
def test_other_frames_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(PeerViolation):
        read_frames(frames)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\xc0",
        b"\xa1\xff",
        b"\x91" * 20_000,
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({"ts": 1}),
    ],
)
def test_what_is_no_batch_is_refused(junk: bytes) -> None:
    with pytest.raises(PeerViolation):
        decode_batch(junk)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*stored([], []), "group_idx", "metadata", "extra_keys"])
TAGS = st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"])
NEARLY = st.dictionaries(NAMES, VALUES).flatmap(
    lambda fields: TAGS.map(lambda tag: {**fields, "type": tag})
) | st.tuples(TAGS, VALUES, VALUES, VALUES, VALUES, VALUES, VALUES, VALUES, VALUES)


@CALM
@given(st.lists(NEARLY | VALUES, max_size=3))
def test_of_any_events_each_is_read_or_counted(events: list[object]) -> None:
    batch = decoded(*events)
    assert len(batch.events) + sum(batch.skipped.values()) == len(events)
    for event in batch.events:
        if isinstance(event, Stored):
            assert all(0 <= value < 1 << 64 for value in event.hashes)
            assert not event.ids or event.page * len(event.hashes) * 4 == len(event.ids)


@CALM
@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_refused(junk: bytes) -> None:
    with suppress(PeerViolation):
        decode_batch(junk)


@CALM
@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_the_pieces_of_an_event_are_one_chain(blocks: int, most: int, bare: bool) -> None:
    ids = pack_ids(range(16 * blocks))
    hashes = list(range(1, blocks + 1))
    event = Stored(
        hashes, 99, type(ids)(b"") if bare else ids, 16, Tier.GPU, "", [None] * blocks, "", 0, False
    )
    pieces = split(event, most)
    assert [value for piece in pieces for value in piece.hashes] == hashes
    assert b"".join(piece.ids for piece in pieces) == event.ids
    assert [piece.parent for piece in pieces] == [99, *(p.hashes[-1] for p in pieces[:-1])]
    assert all(len(piece.extra_keys or ()) == len(piece.hashes) <= most for piece in pieces)
