"""The same facts give the same index, on every machine and every version of Python."""

from random import Random

from xxhash import xxh3_64_intdigest

from extproc.index import (
    Bounds,
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Held,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.index.scope import BLOCK_BYTES
from extproc.terms import NO_BLOCK, BlockKey, InstanceId, PackedKeys

CONVERSATIONS = 300

GOLDEN = ("4bc9370c6f2c0039", 22247, 7201, 294, {"capacity": 23369, "tenant": 142546})
"""Digest, held, blocks, edges and evictions after the history."""


def packed(keys: list[int]) -> PackedKeys:
    return PackedKeys(b"".join(key.to_bytes(8, "little") for key in keys))


def history(facts: int) -> list[Fact]:
    """A long, busy history: turns, branches, removals, restarts; the same for the same number."""
    random = Random(11)  # its `random()` is the same in all versions, `randrange` is not

    def draw(limit: int) -> int:
        return int(random.random() * limit)

    names = [InstanceId(f"i{n}") for n in range(24)]
    log: list[Fact] = []
    for name in names:
        log += [Joined(name, 16), Capacity(name, Tier.GPU, 800 + 100 * draw(10))]
    chains: list[list[int]] = [[xxh3_64_intdigest(b"%d" % n) for n in range(40)]]
    while len(log) < facts:
        name, kind = names[draw(24)], draw(100)
        chain = chains[draw(len(chains))]
        source = Source.EVENT if draw(2) else Source.PICK
        tier = Tier.CPU if draw(20) == 0 else Tier.GPU
        if kind < 80:
            start = draw(len(chain)) if kind < 20 else len(chain)
            grown = chain[:start]
            for _ in range(1 + draw(30)):
                grown = [
                    *grown,
                    xxh3_64_intdigest(b"%d" % draw(1 << 30), seed=grown[-1] if grown else 0),
                ]
            chains.append(grown)
            if len(chains) > CONVERSATIONS:
                chains.pop(1 + draw(CONVERSATIONS - 1))
            parent = BlockKey(grown[start - 1]) if start else NO_BLOCK
            tenant = f"t{grown[0] % 3}"
            log.append(Held(name, tier, NO_BLOCK, packed(grown), source, tenant))
            log.append(Held(names[draw(24)], tier, parent, packed(grown[start:]), source, tenant))
        elif kind < 92:
            log.append(Dropped(name, tier, packed(chain[draw(len(chain)) :]), Source.EVENT))
        elif kind < 97:
            log.append(Expired(name, packed(chain[draw(len(chain)) :][::-1])))
        elif kind < 99:
            log.append(Cleared(name, Source.EVENT))
        else:
            log += [Left(name), Joined(name, 16), Capacity(name, Tier.GPU, 1500)]
    return log


def test_a_long_history_has_this_digest_everywhere() -> None:
    index = PrefixIndex(Bounds(24_000 * BLOCK_BYTES, 22_000 * BLOCK_BYTES))
    for fact in history(6000):
        index.apply(fact)
    while index.step():
        pass
    stats = index.stats()
    seen = (f"{index.digest:016x}", stats.held, stats.blocks, stats.edges, stats.evicted)
    assert seen == GOLDEN


def test_steps_in_between_make_no_difference() -> None:
    plain, stepped = PrefixIndex(), PrefixIndex()
    for number, fact in enumerate(history(2000)):
        plain.apply(fact)
        stepped.apply(fact)
        if number % 3 == 0:
            stepped.step()
    for index in (plain, stepped):
        while index.step():
            pass
    assert plain.digest == stepped.digest
    assert plain.stats().held == stepped.stats().held


def test_learning_goes_on_beyond_any_number_of_prefixes() -> None:
    index = PrefixIndex()
    name = InstanceId("a")
    index.apply(Joined(name, 16))
    prompts = [
        packed([xxh3_64_intdigest(b"%d" % n), xxh3_64_intdigest(b"+%d" % n)]) for n in range(20_000)
    ]
    for keys in prompts:
        index.apply(Held(name, Tier.GPU, NO_BLOCK, keys, Source.PICK))
    assert all(index.match(keys)[name].gpu == 2 for keys in prompts)
