"""Facts as hypothesis draws them: every kind, every value that the log can hold."""

from hypothesis import strategies as st

from extproc.index import (
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Held,
    Joined,
    Left,
    Source,
    Tier,
)
from extproc.log.records import MAX_BLOCK_SIZE, MAX_BLOCKS
from extproc.terms import BlockKey, InstanceId, PackedKeys

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instances = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(
    InstanceId
)
block_keys = st.integers(1, (1 << 64) - 1).map(BlockKey)
packed_keys = st.lists(block_keys, max_size=20).map(
    lambda keys: PackedKeys(b"".join(key.to_bytes(8, "little") for key in keys))
)
tiers, sources = st.sampled_from(Tier), st.sampled_from(Source)

facts: st.SearchStrategy[Fact] = st.one_of(
    st.builds(
        Held,
        instances,
        tiers,
        st.integers(0, (1 << 64) - 1).map(BlockKey),
        packed_keys,
        sources,
        texts,
    ),
    st.builds(Dropped, instances, tiers, packed_keys, sources),
    st.builds(Cleared, instances, sources),
    st.builds(Expired, instances, packed_keys),
    st.builds(Capacity, instances, tiers, st.integers(0, MAX_BLOCKS)),
    st.builds(Joined, instances, st.integers(1, MAX_BLOCK_SIZE), texts),
    st.builds(Left, instances),
)
