"""An instance's cache as its own events tell it: events in, facts out. No I/O, no clock.

Events name blocks by the engine's hashes and say which tokens they hold. Here each hash gets the
block key that a prompt with these tokens has, so that what an engine says and what picks expect
meet in one tree. Copies are counted: equal blocks can be stored twice, and each removal is
reported. A fact is made only where the first copy comes or the last one goes, so the index is a
set.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from xxhash import xxh3_64_intdigest

from extproc.engines.events.hashes import Hashes
from extproc.engines.events.pages import Pages
from extproc.engines.events.runs import Runs
from extproc.engines.events.wire import AllCleared, Event, Removed, Stored
from extproc.index import Cleared, Dropped, Fact, Source, Tier
from extproc.terms import KEY_BYTES, NO_BLOCK, TOKEN_BYTES, BlockKey, InstanceId, PackedKeys

Root: TypeAlias = Callable[[str, str], BlockKey]
"""Adapter and salt → where their chains start; "" for none."""

FindParent: TypeAlias = Callable[[bytes], BlockKey | None]
"""Tokens of a block whose parent no event has explained → the parent's key, if a prompt that was
routed to the instance has this block: a chained key proves it."""

_OPAQUE = BlockKey(0)
"""In place of a key: tokens alone do not say what is in the block (an image, an unknown adapter).
So are all blocks after it."""

MAX_BLOCKS = 1 << 22
"""Engine hashes kept of one instance, some 600 MB: no engine has four million blocks, so more mean
that removals are missing."""

_DROPPED_AT_ONCE = 64
"""Keys in one `Dropped`: in no order they cost the index up to 10 µs each."""

_RESTATED_AT_ONCE = 512
"""Blocks in one step of `restate`."""


class Fold:
    """What one instance holds.

    applied: blocks that were stored and removed. skipped: blocks and events that were left out, by
    reason. orphans: blocks whose parent is
    unknown; where the history is whole, something was missed.
    """

    def __init__(
        self,
        instance: InstanceId,
        block_size: int,
        root: Root,
        find_parent: FindParent | None = None,
    ) -> None:
        self.instance = instance
        self.applied: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.orphans = 0
        self._block_size = block_size
        self._root = root
        self._find_parent = find_parent
        self.clear()

    @property
    def blocks(self) -> int:
        """Engine hashes that are held, in any tier."""
        return len(self._hashes)

    def apply(self, event: Event) -> Sequence[Fact]:
        """Take one event in; the facts that follow, in order.

        Never raises. Some microseconds a block, so large events are split first.
        """
        if type(event) is Stored:
            self.applied["stored"] += len(event.hashes)
            return self._store(event)
        if type(event) is Removed:
            self.applied["removed"] += len(event.hashes)
            return self._remove(event)
        assert type(event) is AllCleared
        return self.clear()

    def clear(self) -> Sequence[Fact]:
        """It has nothing any more, or what is known of it cannot be trusted."""
        self._hashes = Hashes()
        self._pages = Pages(self._block_size)
        self._group: int | None = None
        return [Cleared(self.instance, Source.EVENT)]

    # Blocks that come

    def _store(self, event: Stored) -> Sequence[Fact]:
        if self._group is None:
            self._group = event.group
        elif event.group is not None and event.group != self._group:
            self.skipped["other_group"] += len(event.hashes)
            return []
        if not event.ids:
            return self._copy(event)
        if event.page < 1 or self._block_size % event.page:
            self.skipped["block_size"] += len(event.hashes)
            return []
        if self.blocks >= MAX_BLOCKS:
            self.skipped["too_many"] += len(event.hashes)
            return []
        return self._chain(event)

    def _copy(self, event: Stored) -> Sequence[Fact]:
        """Blocks of which the engine has told before are in another tier too."""
        runs = Runs(self.instance)
        for engine_hash in event.hashes:
            block = self._hashes.get(engine_hash)
            if block is None:
                self.skipped["unknown_block"] += 1
                continue
            first = self._hashes.add(engine_hash, 0, 0, event.tier, event.again)
            if first and block.key and not self._pages.is_begun(block.key):
                runs.add(block.key, block.parent, event.tier)
        return runs.facts()

    def _chain(self, event: Stored) -> Sequence[Fact]:
        if event.parent is None:
            above = NO_BLOCK
            if event.adapter is None:
                self.skipped["unknown_adapter"] += len(event.hashes)
                seed = _OPAQUE
            else:
                seed = self._root(event.adapter, event.salt or _salt(event))
        else:
            known = self._parent(event, event.parent)
            if known is None:
                self.orphans += len(event.hashes)
                self.skipped["unknown_parent"] += len(event.hashes)
                return []
            above = seed = known
        usable = _usable(event) if seed else 0
        if usable < len(event.hashes) and seed:
            self.skipped["media"] += len(event.hashes) - usable
        if event.page < self._block_size:
            return self._gather(event, seed, above, usable)
        runs = Runs(self.instance)
        add, tier, again, ids = self._hashes.add, event.tier, event.again, event.ids
        step = event.page * TOKEN_BYTES
        end = 0
        for engine_hash in event.hashes[:usable]:
            start, end = end, end + step
            seed = BlockKey(xxh3_64_intdigest(ids[start:end], seed) or 1)
            if add(engine_hash, seed, above, tier, again):
                runs.add(seed, above, tier)
            above = seed
        for engine_hash in event.hashes[usable:]:
            add(engine_hash, _OPAQUE, NO_BLOCK, tier, again)
        return runs.facts()

    def _gather(
        self, event: Stored, seed: BlockKey, above: BlockKey, usable: int
    ) -> Sequence[Fact]:
        """Pages smaller than our blocks: a block is held with the last of its pages."""
        runs = Runs(self.instance)
        step = event.page * TOKEN_BYTES
        for number, engine_hash in enumerate(event.hashes):
            if number >= usable:
                self._hashes.add(engine_hash, _OPAQUE, NO_BLOCK, event.tier, event.again)
                continue
            ids = event.ids[number * step : (number + 1) * step]
            page = self._pages.follow(seed, above, ids)
            first = self._hashes.add(engine_hash, page.key, page.above, event.tier, event.again)
            if first and page.ends:
                runs.add(page.key, page.above, event.tier)
            seed = above = page.key
        return runs.facts()

    def _parent(self, event: Stored, engine_hash: int) -> BlockKey | None:
        """The key of the block that the event chains on; opaque under one that is."""
        block = self._hashes.get(engine_hash)
        if block is not None:
            return block.key
        if self._find_parent is None or event.page != self._block_size:
            return None
        key = self._find_parent(event.ids[: self._block_size * TOKEN_BYTES])
        if key is not None:  # held, as it has a child in use; what is above it stays unknown
            self._hashes.add(engine_hash, key, key, event.tier, True)
        return key

    # Blocks that go

    def _remove(self, event: Removed) -> Sequence[Fact]:
        if event.group is not None and event.group != self._group:
            return []
        gone = []
        for engine_hash in event.hashes:
            key = self._hashes.take(engine_hash, event.tier)
            if key is None:
                continue
            if self._pages.is_begun(key):
                if self._hashes.get(engine_hash) is None:
                    self._pages.forget(key)
            elif key:
                gone.append(key)
        return [
            Dropped(
                self.instance, event.tier, _packed(gone[at : at + _DROPPED_AT_ONCE]), Source.EVENT
            )
            for at in range(0, len(gone), _DROPPED_AT_ONCE)
        ]

    # All of it again

    def restate(self) -> Iterator[Sequence[Fact]]:
        """Facts that tell an empty index all of it, parents first; a small part a step.

        To be used before the next event. O(blocks); lists may be empty.
        """
        after: dict[BlockKey, list[tuple[BlockKey, Tier]]] = {}
        starts: list[BlockKey] = [NO_BLOCK]
        copies: list[tuple[BlockKey, BlockKey, Tier]] = []
        for blocks in self._hashes.blocks():
            for (key, parent), tiers in blocks:
                if key == parent:
                    starts.append(key)
                elif not self._pages.is_begun(key):
                    after.setdefault(parent, []).append((key, tiers[0]))
                    copies += [(key, parent, tier) for tier in tiers[1:]]
            yield ()
        runs, told = Runs(self.instance), 0
        left = [(key, start, tier) for start in starts for key, tier in after.pop(start, ())]
        while left:
            key, parent, tier = left.pop()
            runs.add(key, parent, tier)
            left += [(child, key, tier) for child, tier in after.pop(key, ())]
            told += 1
            if told % _RESTATED_AT_ONCE == 0:
                yield runs.facts()
        for told, (key, parent, tier) in enumerate(copies):
            runs.add(key, parent, tier)
            if told % _RESTATED_AT_ONCE == 0:
                yield runs.facts()
        yield runs.facts()


def _packed(keys: Iterable[BlockKey]) -> PackedKeys:
    return PackedKeys(b"".join(key.to_bytes(KEY_BYTES, "little") for key in keys))


def _salt(event: Stored) -> str:
    """The salt that the hash of a prompt's first block covers (vLLM's extra keys)."""
    keys = _own_keys(event, 0)
    return keys[0] if len(keys) == 1 and isinstance(keys[0], str) else ""


def _usable(event: Stored) -> int:
    """Leading blocks whose hash covers nothing but tokens, adapter and salt."""
    if event.extra_keys is None or not any(event.extra_keys):
        return len(event.hashes)
    for number in range(min(len(event.hashes), len(event.extra_keys))):
        keys = _own_keys(event, number)
        if number == 0 and event.parent is None and len(keys) == 1 and isinstance(keys[0], str):
            continue
        if keys:
            return number
    return len(event.hashes)


def _own_keys(event: Stored, number: int) -> list[Any]:
    """A block's extra keys without the adapter's name, which vLLM writes first."""
    keys = event.extra_keys[number] if event.extra_keys else None
    if not isinstance(keys, list | tuple):
        return []
    return list(keys[1:] if keys and event.adapter and keys[0] == event.adapter else keys)
