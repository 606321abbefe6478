"""The KV cache of one simulated engine: vLLM's block pool, without the tensors.

A pool of numbered blocks. A block is *in use* by running requests (a reference count) or *free*;
a free block may still have its content, under a hash, until it is taken for something else. The
free blocks stand in one queue: taken at its head, given back at its end, tail of a request before
its head, so that what remains of a prompt under pressure is a head that still matches. One that
holds nothing is given back at the queue's head.

Rules of vLLM 0.32, `v1/core/block_pool.py` and `kv_cache_manager.py`:

- block 0 is reserved and never holds content;
- equal blocks may exist more than once: one that was computed twice is kept twice, and each removal
  is reported;
- only full blocks have a hash, and the last token of a prompt is always computed, so a prompt of
  exactly n blocks hits n - 1.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NewType, TypeAlias

from extproc.terms import TOKEN_BYTES, TokenIds

BlockHash = NewType("BlockHash", bytes)
"""sha256 over the parent's hash and the block's tokens. The engine's own, not a `BlockKey`: were
Homing's keys wrong, a cache that used them too would agree with the mistake."""

RESERVED_BLOCKS = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks were filled: `hashes` in a chain after `parent` (None: first blocks of a prompt).

    ids: the tokens of all of them. salt: the prompt's.
    """

    parent: BlockHash | None
    hashes: tuple[BlockHash, ...]
    ids: TokenIds
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """One copy of this block lost its content."""

    hash: BlockHash


@dataclass(frozen=True, slots=True)
class Cleared:
    """All blocks lost their content."""


Event: TypeAlias = Stored | Removed | Cleared

Listener: TypeAlias = Callable[[Event], None]


def chain_root(model: str, salt: str) -> BlockHash:
    """What the first block of a prompt chains on, so that models and salts share nothing."""
    return BlockHash(sha256(f"{len(model)}:{model}{salt}".encode()).digest())


class TokenChain:
    """Tokens of one request, prompt and answer, with the hashes of their full blocks.

    salt: the prompt's, which is part of `root`.
    """

    def __init__(self, ids: TokenIds, root: BlockHash, block_size: int, salt: str = "") -> None:
        self.ids = ids
        self._salt = salt
        self._step = block_size * TOKEN_BYTES
        self.hashes: list[BlockHash] = []
        parent = root
        for end in range(self._step, len(ids) + 1, self._step):
            parent = BlockHash(sha256(parent + ids[end - self._step : end]).digest())
            self.hashes.append(parent)

    def stored(self, start: int, end: int) -> Stored:
        """The event for the blocks `start` to `end` (excluded)."""
        return Stored(
            self.hashes[start - 1] if start else None,
            tuple(self.hashes[start:end]),
            TokenIds(self.ids[start * self._step : end * self._step]),
            self._salt,
        )


@dataclass(eq=False, slots=True)
class Lease:
    """The blocks that a running request uses, in the order of its tokens.

    cached: leading blocks that were hit. filled: leading blocks that are under a hash by now.
    """

    chain: TokenChain
    blocks: list[int]
    cached: int
    filled: int


@dataclass(slots=True)
class _Block:
    users: int = 0
    hash: BlockHash | None = None


@dataclass(slots=True)
class PrefixCache:
    """blocks: in the pool, the reserved one included. block_size: tokens a block."""

    blocks: int
    block_size: int
    listener: Listener | None = None
    _pool: list[_Block] = field(init=False)
    _free: OrderedDict[int, None] = field(init=False)
    _copies: dict[BlockHash, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = [_Block() for _ in range(self.blocks)]
        self._free = OrderedDict.fromkeys(range(RESERVED_BLOCKS, self.blocks))

    @property
    def capacity_tokens(self) -> int:
        """Tokens of the longest request that fits."""
        return (self.blocks - RESERVED_BLOCKS) * self.block_size

    @property
    def usage(self) -> float:
        """Share of the blocks that running requests use, 0 to 1; what is only cached is free."""
        return 1 - len(self._free) / (self.blocks - RESERVED_BLOCKS)

    def match(self, chain: TokenChain, prompt_tokens: int) -> int:
        """Leading blocks of the prompt that are cached. Changes nothing."""
        most = (prompt_tokens - 1) // self.block_size
        for number, block_hash in enumerate(chain.hashes[:most]):
            if block_hash not in self._copies:
                return number
        return most

    def acquire(self, chain: TokenChain, prompt_tokens: int, tokens: int) -> Lease | None:
        """Take the blocks for `tokens` tokens of a chain; None where too few are free.

        The cached head is shared, the rest is taken at the head of the free queue and loses what it
        held. Blocks in use are never taken.
        """
        cached = self.match(chain, prompt_tokens)
        hit = [self._copies[block_hash][0] for block_hash in chain.hashes[:cached]]
        missing = -(-tokens // self.block_size) - cached
        if missing > len(self._free) - sum(block in self._free for block in hit):
            return None
        for block in hit:
            self._free.pop(block, None)
        blocks = hit + [self._take() for _ in range(missing)]
        for block in blocks:
            self._pool[block].users += 1
        return Lease(chain, blocks, cached, cached)

    def commit(self, lease: Lease, tokens: int) -> None:
        """The first `tokens` tokens are computed now: their full blocks can be hit from here on."""
        start, end = lease.filled, tokens // self.block_size
        if end <= start:
            return
        for number in range(start, end):
            block, block_hash = lease.blocks[number], lease.chain.hashes[number]
            self._pool[block].hash = block_hash
            self._copies.setdefault(block_hash, []).append(block)
        lease.filled = end
        self._report(lease.chain.stored(start, end))

    def release(self, lease: Lease) -> None:
        """Give the blocks back, tail first; what they hold stays until it is evicted."""
        empty = []
        for block in reversed(lease.blocks):
            self._pool[block].users -= 1
            if not self._pool[block].users:
                self._free[block] = None
                if self._pool[block].hash is None:
                    empty.append(block)
        for block in reversed(empty):
            self._free.move_to_end(block, last=False)
        lease.blocks = []

    def reset(self) -> bool:
        """Forget all content; False, and nothing done, while requests use blocks."""
        if any(block.users for block in self._pool):
            return False
        for block in self._pool:
            block.hash = None
        self._copies.clear()
        self._report(Cleared())
        return True

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        block_hash = self._pool[block].hash
        if block_hash is not None:
            copies = self._copies[block_hash]
            copies.remove(block)
            if not copies:
                del self._copies[block_hash]
            self._pool[block].hash = None
            self._report(Removed(block_hash))
        return block

    def _report(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)
