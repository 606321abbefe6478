from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from extproc.demo.prefix_cache import (
    BlockHash,
    Lease,
    PrefixCache,
    Removed,
    Stored,
    TokenChain,
    chain_root,
)
from extproc.prompt import pack_ids
from tests.demo.cache_model import CacheModel, ModelLease

SIZE = 4
ROOT = chain_root("model", "")


def chain(*ids: int, root: BlockHash = ROOT) -> TokenChain:
    return TokenChain(pack_ids(ids), root, SIZE)


def run(cache: PrefixCache, sequence: TokenChain, prompt_tokens: int) -> int:
    """One request to its end; the blocks that it hit."""
    tokens = len(sequence.ids) // 4
    lease = cache.acquire(sequence, prompt_tokens, tokens)
    assert lease is not None
    cache.commit(lease, tokens)
    cache.release(lease)
    return lease.cached


class CacheAgainstModel(RuleBasedStateMachine):
    """Random requests on both caches: same hits, same refusals, same events in the same order."""

    leases: Bundle[tuple[Lease, ModelLease, int]] = Bundle("leases")

    @initialize(blocks=st.integers(2, 12))
    def start(self, blocks: int) -> None:
        self.events: list[Stored | Removed] = []
        self.cache = PrefixCache(blocks, SIZE, self.events.append)
        self.model = CacheModel(blocks, SIZE)

    @rule(
        target=leases,
        ids=st.lists(st.integers(0, 1), min_size=1, max_size=26),
        answer=st.integers(0, 9),
        salt=st.sampled_from(["", "a"]),
    )
    def admit(self, ids: list[int], answer: int, salt: str) -> tuple[Lease, ModelLease, int]:
        sequence = chain(*ids, *[7] * answer, root=chain_root("model", salt))
        tokens = len(ids) + answer
        assert self.cache.match(sequence, len(ids)) == self.model.match(sequence, len(ids))
        mine = self.cache.acquire(sequence, len(ids), tokens)
        twin = self.model.acquire(sequence, len(ids), tokens)
        assert (mine is None) == (twin is None)
        if mine is None or twin is None:
            empty = chain()
            return Lease(empty, [], 0, 0), ModelLease(empty, [], 0, 0), 0
        assert (mine.blocks, mine.cached) == (twin.blocks, twin.cached)
        return mine, twin, tokens

    @rule(lease=leases, share=st.floats(0, 1))
    def compute(self, lease: tuple[Lease, ModelLease, int], share: float) -> None:
        mine, twin, tokens = lease
        if mine.blocks:
            self.cache.commit(mine, int(tokens * share))
            self.model.commit(twin, int(tokens * share))

    @rule(lease=leases)
    def leave(self, lease: tuple[Lease, ModelLease, int]) -> None:
        mine, twin, _ = lease
        self.cache.release(mine)
        self.model.release(twin)
        twin.blocks = []

    @invariant()
    def events_agree(self) -> None:
        assert self.events == self.model.events

    @invariant()
    def usage_agrees(self) -> None:
        assert self.cache.usage == pytest.approx(self.model.usage())

    @invariant()
    def copies_counted_from_events_are_what_is_held(self) -> None:
        held: Counter[BlockHash] = Counter()
        for event in self.events:
            match event:
                case Stored():
                    held.update(event.hashes)
                case Removed():
                    held[event.hash] -= 1
        assert min(held.values(), default=0) >= 0
        assert +held == Counter(held_hash for _, held_hash in self.model.content.values())


TestCacheAgainstModel = CacheAgainstModel.TestCase
TestCacheAgainstModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_a_prompt_of_whole_blocks_hits_one_block_less() -> None:
    cache = PrefixCache(10, SIZE)
    assert run(cache, chain(*range(8)), 8) == 0
    assert run(cache, chain(*range(8)), 8) == 1
    assert run(cache, chain(*range(9)), 9) == 2


def test_the_same_block_under_another_parent_is_another_block() -> None:
    cache = PrefixCache(20, SIZE)
    run(cache, chain(1, 1, 1, 1, 5, 6, 7, 8), 8)
    assert run(cache, chain(2, 2, 2, 2, 5, 6, 7, 8, 9), 9) == 0


def test_salts_and_models_share_nothing() -> None:
    cache = PrefixCache(30, SIZE)
    ids = range(9)
    run(cache, chain(*ids), 9)
    for root in (chain_root("model", "salt"), chain_root("mode", "l"), chain_root("other", "")):
        assert cache.match(chain(*ids, root=root), 9) == 0
    assert cache.match(chain(*ids), 9) == 2


def test_under_pressure_a_prompt_loses_its_tail_first() -> None:
    cache = PrefixCache(1 + 6, SIZE)
    long = chain(*range(16), 99)
    run(cache, long, 17)  # 4 full blocks and one more, of 6
    depths = []
    for filler in range(50, 54):
        run(cache, chain(*[filler] * 4), 4)
        depths.append(cache.match(long, 17))
    assert depths == [4, 4, 3, 2]


def test_a_hit_makes_a_prompt_recent() -> None:
    cache = PrefixCache(1 + 3, SIZE)
    old, new = chain(1, 1, 1, 1, 0), chain(2, 2, 2, 2, 0)
    run(cache, old, 5)
    run(cache, new, 5)
    assert run(cache, old, 5) == 1
    run(cache, chain(*[3] * 8), 8)
    assert (cache.match(old, 5), cache.match(new, 5)) == (1, 0)


def test_blocks_in_use_are_never_taken() -> None:
    cache = PrefixCache(1 + 3, SIZE)
    running = cache.acquire(chain(*range(8)), 8, 8)
    assert running is not None
    cache.commit(running, 8)
    assert cache.acquire(chain(*[9] * 8), 8, 8) is None
    assert cache.match(chain(*range(9)), 9) == 2
    cache.release(running)
    assert cache.acquire(chain(*[9] * 8), 8, 8) is not None


def test_blocks_that_a_request_hits_are_not_free_for_its_rest() -> None:
    cache = PrefixCache(1 + 3, SIZE)
    run(cache, chain(1, 1, 1, 1, 2), 5)
    longer = chain(1, 1, 1, 1, *[3] * 12)
    assert cache.acquire(longer, 16, 16) is None
    assert cache.match(longer, 16) == 1
    assert run(cache, chain(1, 1, 1, 1, *[3] * 8), 12) == 1


def test_of_two_copies_the_one_that_was_evicted_is_forgotten() -> None:
    cache = PrefixCache(1 + 4, SIZE)
    same = chain(1, 1, 1, 1, 0)
    leases = [cache.acquire(same, 5, 5) for _ in range(2)]
    blocks = []
    for lease in leases:
        assert lease is not None
        cache.commit(lease, 5)
        blocks.append(lease.blocks[0])
        cache.release(lease)
    assert blocks[0] != blocks[1]
    for _ in range(2):
        hit = cache.acquire(same, 5, 5)
        assert hit is not None
        assert hit.blocks[0] == blocks[0]
        cache.release(hit)
        run(cache, chain(*[9] * 12), 12)  # takes all but the copy that was just hit


def test_requests_that_run_together_share_their_head_and_copy_nothing() -> None:
    cache = PrefixCache(1 + 4, SIZE)
    run(cache, chain(1, 1, 1, 1, 2), 5)
    first = cache.acquire(chain(1, 1, 1, 1, 5), 5, 5)
    second = cache.acquire(chain(1, 1, 1, 1, 6), 5, 5)
    assert first is not None
    assert second is not None
    assert first.blocks[0] == second.blocks[0]
    assert cache.usage == 3 / 4


def test_what_was_not_computed_cannot_be_hit() -> None:
    cache = PrefixCache(10, SIZE)
    sequence = chain(*range(16))
    lease = cache.acquire(sequence, 16, 16)
    assert lease is not None
    cache.commit(lease, 7)
    cache.release(lease)
    assert cache.match(sequence, 16) == 1


def test_the_listener_hears_of_every_block_with_its_parent_and_tokens() -> None:
    events: list[Stored | Removed] = []
    cache = PrefixCache(1 + 2, SIZE, events.append)
    sequence = chain(*range(8))
    lease = cache.acquire(sequence, 8, 8)
    assert lease is not None
    cache.commit(lease, 4)
    cache.commit(lease, 8)
    cache.release(lease)
    run(cache, chain(*[9] * 4), 4)
    first, second = sequence.hashes
    assert events == [
        Stored(None, (first,), pack_ids(range(4))),
        Stored(first, (second,), pack_ids(range(4, 8))),
        Removed(second),
        Stored(None, tuple(chain(*[9] * 4).hashes), pack_ids([9] * 4)),
    ]
