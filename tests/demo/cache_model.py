"""The naive twin of `PrefixCache`: one list of blocks, searched from end to end."""

from dataclasses import dataclass

from extproc.demo.prefix_cache import BlockHash, Removed, Stored, TokenChain


@dataclass(eq=False)
class ModelLease:
    chain: TokenChain
    blocks: list[int]
    cached: int
    filled: int


class CacheModel:
    """Blocks as dicts in a list; `order` is the whole history of when each became free."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.users = dict.fromkeys(range(1, blocks), 0)
        self.content: dict[int, tuple[int, BlockHash]] = {}  # block → (when stored, hash)
        self.freed_at = {block: block for block in self.users}
        self.clock = blocks
        self.events: list[Stored | Removed] = []

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def holders(self, block_hash: BlockHash) -> list[int]:
        """Blocks with this content, the one stored first in front."""
        found = [(when, b) for b, (when, held) in self.content.items() if held == block_hash]
        return [block for _, block in sorted(found)]

    def free(self) -> list[int]:
        """Free blocks, the one to be taken first in front."""
        return sorted((b for b, n in self.users.items() if n == 0), key=self.freed_at.__getitem__)

    def match(self, chain: TokenChain, prompt_tokens: int) -> int:
        depth = 0
        while (depth + 1) * self.block_size < prompt_tokens and self.holders(chain.hashes[depth]):
            depth += 1
        return depth

    def acquire(self, chain: TokenChain, prompt_tokens: int, tokens: int) -> ModelLease | None:
        cached = self.match(chain, prompt_tokens)
        hit = [self.holders(chain.hashes[i])[0] for i in range(cached)]
        missing = (tokens + self.block_size - 1) // self.block_size - cached
        available = [block for block in self.free() if block not in hit]
        if len(available) < missing:
            return None
        taken = available[:missing]
        for block in taken:
            if block in self.content:
                self.events.append(Removed(self.content.pop(block)[1]))
        for block in hit + taken:
            self.users[block] += 1
        return ModelLease(chain, hit + taken, cached, cached)

    def commit(self, lease: ModelLease, tokens: int) -> None:
        start, end = lease.filled, max(lease.filled, tokens // self.block_size)
        for i in range(start, end):
            self.content[lease.blocks[i]] = (self.tick(), lease.chain.hashes[i])
        lease.filled = end
        if end > start:
            self.events.append(lease.chain.stored(start, end))

    def release(self, lease: ModelLease) -> None:
        for block in lease.blocks[::-1]:
            self.users[block] -= 1
            self.freed_at[block] = self.tick()
        for block in lease.blocks:
            if block not in self.content:
                self.freed_at[block] = -self.tick()

    def usage(self) -> float:
        return sum(n > 0 for n in self.users.values()) / len(self.users)
