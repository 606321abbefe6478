"""Chained block keys for tests: a prompt is a string, a letter a block."""

from functools import lru_cache

import xxhash

from extproc.index import Capacity, Held, Joined, PrefixIndex, Source, Tier
from extproc.terms import NO_BLOCK, BlockKey, InstanceId, PackedKeys

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")


@lru_cache(maxsize=4096)
def keys(prompt: str) -> tuple[BlockKey, ...]:
    """A block key per letter, each seeded with the one before."""
    chain, key = [], 0
    for letter in prompt:
        key = xxhash.xxh3_64_intdigest(letter.encode(), seed=key)
        chain.append(BlockKey(key))
    return tuple(chain)


@lru_cache(maxsize=4096)
def packed(prompt: str, after: int = 0) -> PackedKeys:
    """The keys of the prompt's blocks from block `after` on."""
    return PackedKeys(b"".join(key.to_bytes(8, "little") for key in keys(prompt)[after:]))


def parent(prompt: str, after: int) -> BlockKey:
    """The key of the block before block `after`."""
    return keys(prompt)[after - 1] if after else NO_BLOCK


def held(
    instance: InstanceId,
    prompt: str,
    after: int = 0,
    tier: Tier = Tier.GPU,
    source: Source = Source.PICK,
    tenant: str = "",
) -> Held:
    """The fact that the instance has the prompt's blocks from block `after` on."""
    return Held(instance, tier, parent(prompt, after), packed(prompt, after), source, tenant)


def index_of(*instances: InstanceId, capacity: int | None = None) -> PrefixIndex:
    """An index where these instances have joined, with so many GPU blocks each."""
    index = PrefixIndex()
    for instance in instances:
        index.apply(Joined(instance, 16))
        if capacity is not None:
            index.apply(Capacity(instance, Tier.GPU, capacity))
    return index


def depths(index: PrefixIndex, prompt: str) -> dict[str, int]:
    """GPU depth of the prompt per instance that has any."""
    return {str(i): d.gpu for i, d in index.match(packed(prompt)).items() if d.gpu}
