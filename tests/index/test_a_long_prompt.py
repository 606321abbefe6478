"""One fact that is larger than any table the index has yet."""

from xxhash import xxh3_64_digest

from extproc.index import Dropped, Held, Joined, PrefixIndex, Source, Tier
from extproc.terms import KEY_BYTES, NO_BLOCK, InstanceId, PackedKeys

A = InstanceId("a")


def test_a_prompt_of_100_000_blocks_is_filed_whole_and_dropped_block_by_block() -> None:
    index = PrefixIndex()
    index.apply(Joined(A, 16))
    keys = PackedKeys(b"".join(xxh3_64_digest(n.to_bytes(8)) for n in range(100_000)))
    index.apply(Held(A, Tier.GPU, NO_BLOCK, keys, Source.PICK))
    assert index.match(keys)[A].gpu == 100_000
    middle = PackedKeys(keys[50_000 * KEY_BYTES : 50_001 * KEY_BYTES])
    index.apply(Dropped(A, Tier.GPU, middle, Source.EVENT))
    assert index.match(keys)[A].gpu == 50_000
