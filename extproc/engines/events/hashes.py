"""What each engine hash of an instance stands for, and how many copies of it there are."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from extproc.index import Tier
from extproc.terms import BlockKey

_SHARDS: Final = 64
"""A dict of a million entries takes 50 ms to grow; a 64th of it a millisecond."""

_KEY: Final = (1 << 64) - 1
_COPIES: Final = (1 << 16) - 1
_SHIFT: Final = tuple(128 + 16 * tier for tier in Tier)
_ANY_COPY: Final = sum(_COPIES << shift for shift in _SHIFT)


class Block(NamedTuple):
    """What an engine hash stands for.

    key: 0 where no prompt can name it. parent: the key before it, 0 for the first of a prompt.
    """

    key: BlockKey
    parent: BlockKey


class Hashes:
    """Engine hash → block and copies. About 150 bytes a hash.

    A row is one number, as a dict of numbers takes the fewest bytes and is nothing to Python's
    garbage collector: 64 bits of key, 64 of the parent's, 16 for the copies in each tier.
    """

    def __init__(self) -> None:
        self._shards: tuple[dict[int, int], ...] = tuple({} for _ in range(_SHARDS))

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, engine_hash: int) -> Block | None:
        """The block, if it is held in any tier."""
        row = self._shards[engine_hash % _SHARDS].get(engine_hash)
        if row is None:
            return None
        return Block(BlockKey(row & _KEY), BlockKey(row >> 64 & _KEY))

    def add(self, engine_hash: int, key: int, parent: int, tier: Tier, again: bool) -> bool:
        """One copy more, or with `again` at least one; whether it is the first in its tier.

        key, parent: what it stands for, where it is not known yet.
        """
        shard = self._shards[engine_hash % _SHARDS]
        row = shard.get(engine_hash)
        shift = _SHIFT[tier]
        if row is None:
            shard[engine_hash] = key | parent << 64 | 1 << shift
            return True
        copies = row >> shift & _COPIES
        if copies and (again or copies == _COPIES):
            return False
        shard[engine_hash] = row + (1 << shift)
        return not copies

    def take(self, engine_hash: int, tier: Tier) -> BlockKey | None:
        """One copy less; the block's key if it was the last in its tier, else None."""
        shard = self._shards[engine_hash % _SHARDS]
        row = shard.get(engine_hash)
        if row is None:
            return None
        shift = _SHIFT[tier]
        copies = row >> shift & _COPIES
        if not copies:
            return None
        row -= 1 << shift
        if row & _ANY_COPY:
            shard[engine_hash] = row
        else:
            del shard[engine_hash]
        return None if copies > 1 else BlockKey(row & _KEY)

    def blocks(self) -> Iterator[list[tuple[Block, list[Tier]]]]:
        """The blocks that prompts can name with the tiers they are in, in no order, a part each."""
        for shard in self._shards:
            yield [
                (
                    Block(BlockKey(row & _KEY), BlockKey(row >> 64 & _KEY)),
                    [tier for tier in Tier if row >> _SHIFT[tier] & _COPIES],
                )
                for row in shard.values()
                if row & _KEY
            ]
