"""The prefix index: facts in, cached blocks of a prompt per instance out."""

from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

import xxhash

from extproc.index.cover import leading, ones
from extproc.index.facts import (
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
from extproc.index.tree import PLANES, Edge, Tree, common_prefix
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, InstanceId, PackedKeys

_DIGEST_MASK = (1 << 64) - 1
_TIERS = len(Tier)
_CHAIN = frozenset((Source.PICK, Source.ANSWER))
"""Sources that assert the whole chain from the root."""
_SURE = frozenset((Source.EVENT, Source.CORRECTION))
"""Sources that an expiry does not undo."""


class Depths(NamedTuple):
    """Leading blocks of a prompt that an instance holds without a hole."""

    gpu: int
    """On the GPU."""
    any: int
    """On the GPU or a slower tier; at least `gpu`."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The index in numbers.

    blocks: different blocks in the tree. held: (instance, tier, block) triples. refused: facts that
    could not be filed, by reason. evicted: triples dropped because the instance was full.
    """

    blocks: int
    edges: int
    instances: int
    held: int
    evicted: int
    refused: dict[str, int]


@dataclass(slots=True, eq=False)
class _Instance:
    """What the index keeps per instance. Lists are by tier, `sums` by plane."""

    name: InstanceId
    slot: int
    block_size: int
    limits: list[int | None] = field(default_factory=lambda: [None] * _TIERS)
    counts: list[int] = field(default_factory=lambda: [0] * _TIERS)
    sums: list[int] = field(default_factory=lambda: [0] * PLANES)
    """Sum of the block keys per plane: what the digest is made of."""
    queues: list[list[tuple[int, int, int, Edge]]] = field(
        default_factory=lambda: [[] for _ in range(_TIERS)]
    )
    """Heaps of (stamp, -depth, tie, edge): the oldest touch first, within it the deepest edge. An
    entry whose stamp is no longer the edge's is void. Below every edge where the instance holds
    something, or at it, there is an entry that is due no later than it."""


class PrefixIndex:
    """Who holds which prefix, as a fold over facts: pure, without a clock, the same everywhere.

    Nothing here raises on a fact: what cannot be filed is counted in `stats().refused`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, instances and counters included."""
        self._tree = Tree()
        self._instances: dict[InstanceId, _Instance] = {}
        self._slots: list[_Instance | None] = []
        self._position = 0
        self._evicted = 0
        self._refused: Counter[str] = Counter()
        self._ties = count()

    def match(self, keys: PackedKeys) -> dict[InstanceId, Depths]:
        """Leading blocks of the prompt per instance; one that holds none is absent.

        keys: chained, root first. Never raises, never writes. O(edges on the path + log blocks).
        """
        slots = self._slots
        total = len(keys) // KEY_BYTES
        first = self._tree.first
        alive_gpu = alive_any = sum(1 << i.slot for i in self._instances.values())
        gpu: dict[int, int] = {}
        deepest: dict[int, int] = {}
        at = 0
        while at < total and alive_any:
            edge = first.get(keys[at * KEY_BYTES : (at + 1) * KEY_BYTES])
            if edge is None:
                break
            size = edge.size
            end = at + size
            whole = end <= total and edge.keys[-KEY_BYTES:] == keys[end * 8 - 8 : end * 8]
            limit = min(size, total - at)
            here = size if whole else common_prefix(edge.keys, keys, at * KEY_BYTES, limit)
            on_gpu, on_cpu = edge.covers[Tier.GPU], edge.covers[Tier.CPU]
            for slot in ones(alive_gpu & ~on_gpu.full):
                depth = leading(on_gpu.part.get(slot, 0))
                if depth < here:
                    alive_gpu ^= 1 << slot
                    gpu[slot] = at + depth
            for slot in ones(alive_any & ~on_gpu.full & ~on_cpu.full):
                depth = leading(on_gpu.part.get(slot, 0) | on_cpu.part.get(slot, 0))
                if depth < here:
                    alive_any ^= 1 << slot
                    deepest[slot] = at + depth
            at += here
            if not whole:
                break
        for slot in ones(alive_gpu):
            gpu[slot] = at
        for slot in ones(alive_any):
            deepest[slot] = at
        found = {}
        for slot, depth in deepest.items():
            instance = slots[slot]
            if depth and instance is not None:
                found[instance.name] = Depths(gpu[slot], depth)
        return found

    def held_blocks(self, instance: InstanceId) -> int:
        """Blocks that the instance holds, a block in two tiers counted twice; 0 if unknown."""
        known = self._instances.get(instance)
        return sum(known.counts) if known else 0

    @property
    def digest(self) -> int:
        """64 bits over the content: equal content, equal digest. O(instances).

        Content is who holds which block in which tier and whether that is confirmed, and the
        instances with their block sizes and capacities.
        """
        total = 0
        for instance in self._instances.values():
            name = instance.name
            total += xxhash.xxh3_64_intdigest(
                f"{instance.block_size} {instance.limits} {name}".encode()
            )
            for plane, keys in enumerate(instance.sums):
                total += keys * xxhash.xxh3_64_intdigest(f"{plane} {name}".encode())
        return total & _DIGEST_MASK

    def stats(self) -> IndexStats:
        """Sizes and counters. O(instances)."""
        return IndexStats(
            blocks=len(self._tree.edge_of),
            edges=len(self._tree.first),
            instances=len(self._instances),
            held=sum(sum(i.counts) for i in self._instances.values()),
            evicted=self._evicted,
            refused=dict(self._refused),
        )

    def apply(self, fact: Fact) -> None:
        """Fold one fact. Facts must come in log order; never raises."""
        self._position += 1
        if isinstance(fact, Joined):
            self._join(fact)
            return
        instance = self._instances.get(fact.instance)
        if instance is None:
            self._refused["unknown_instance"] += 1
        elif isinstance(fact, Held):
            self._hold(instance, fact)
        elif isinstance(fact, Dropped):
            self._drop(instance, fact)
        elif isinstance(fact, Expired):
            self._expire(instance, fact)
        elif isinstance(fact, Capacity):
            instance.limits[fact.tier] = max(0, fact.blocks)
            self._evict(instance, fact.tier)
        elif isinstance(fact, Cleared):
            self._clear(instance)
        elif isinstance(fact, Left):
            self._clear(instance)
            self._slots[instance.slot] = None
            del self._instances[instance.name]

    def _join(self, fact: Joined) -> None:
        known = self._instances.get(fact.instance)
        if known is not None:
            self._clear(known)
            slot = known.slot
        elif None in self._slots:
            slot = self._slots.index(None)
        else:
            slot = len(self._slots)
            self._slots.append(None)
        instance = _Instance(fact.instance, slot, fact.block_size)
        self._slots[slot] = instance
        self._instances[fact.instance] = instance

    def _hold(self, instance: _Instance, fact: Held) -> None:
        keys, tier = bytes(fact.keys), fact.tier
        if len(keys) % KEY_BYTES:
            self._refused["malformed"] += 1
            return
        edge: Edge | None = None
        upto = 0
        if fact.parent != NO_BLOCK:
            place = self._tree.find(_packed(fact.parent))
            if place is None or not any(c.any_at(place[1]) for c in place[0].covers[:_TIERS]):
                self._refused["unknown_parent"] += 1
                return
            edge, upto = place[0], place[1] + 1
            if fact.source in _CHAIN:
                self._mark_chain(instance, tier, edge, upto)
        sure = fact.source in _SURE
        at = 0
        while at < len(keys):
            if edge is None or upto == edge.size:
                child = self._tree.first.get(keys[at : at + KEY_BYTES])
                if child is None:
                    edge, upto = self._append(instance, edge, keys[at:])
                    self._mark(instance, tier, edge, upto - (len(keys) - at) // 8, upto, sure)
                    break
                if child.parent is not edge:
                    self._refused["conflict"] += 1
                    break
                edge, upto = child, 0
            rest = edge.keys[upto * KEY_BYTES :]
            limit = min(edge.size - upto, (len(keys) - at) // KEY_BYTES)
            same = common_prefix(rest, keys, at, limit)
            if same:
                self._mark(instance, tier, edge, upto, upto + same, sure)
            at += same * KEY_BYTES
            upto += same
            if at < len(keys) and upto < edge.size:
                if not upto:  # its first key is right, its second is not: no chain
                    self._refused["conflict"] += 1
                    edge = edge.parent
                    upto = edge.size if edge is not None else 0
                    break
                edge = self._split(edge, upto)
                upto = edge.size
        if edge is not None:
            self._touch(instance, edge, upto)
        self._evict(instance, tier)

    def _append(self, instance: _Instance, edge: Edge | None, keys: bytes) -> tuple[Edge, int]:
        """New blocks after `edge`: in it if it is this instance's own tail, else in a new edge."""
        if edge is not None and not edge.kids:
            mine = 1 << instance.slot
            if all(c.full in (0, mine) and not c.part for c in edge.covers):
                self._tree.extend(edge, keys)
                return edge, edge.size
        edge = self._tree.add(edge, keys)
        return edge, edge.size

    def _mark_chain(self, instance: _Instance, tier: Tier, edge: Edge, upto: int) -> None:
        """The instance holds everything from the root to block `upto` of `edge`, as expected."""
        at: Edge | None = edge
        while at is not None:
            self._mark(instance, tier, at, 0, upto, sure=False)
            at = at.parent
            upto = at.size if at is not None else 0

    def _mark(
        self, instance: _Instance, tier: Tier, edge: Edge, start: int, stop: int, sure: bool
    ) -> None:
        blocks = (1 << stop) - (1 << start)
        instance.counts[tier] += self._set(instance, tier, edge, blocks)
        if sure:
            self._set(instance, tier + _TIERS, edge, blocks)

    def _set(self, instance: _Instance, plane: int, edge: Edge, blocks: int) -> int:
        """Add blocks to a plane; how many were new."""
        cover = edge.covers[plane]
        had = cover.get(instance.slot, edge.size)
        new = blocks & ~had
        if new:
            cover.put(instance.slot, had | new, edge.size)
            instance.sums[plane] += _key_sum(edge, new)
        return new.bit_count()

    def _unset(self, instance: _Instance, tier: int, edge: Edge, blocks: int) -> None:
        """Take blocks that the instance holds in this tier away from it."""
        slot, size = instance.slot, edge.size
        for plane in (tier, tier + _TIERS):
            cover = edge.covers[plane]
            had = cover.get(slot, size)
            gone = had & blocks
            if gone:
                cover.put(slot, had & ~gone, size)
                instance.sums[plane] -= _key_sum(edge, gone)
                if plane == tier:
                    instance.counts[tier] -= gone.bit_count()
        if not edge.covers[tier].get(slot, size):
            self._queue_above(instance, tier, edge.parent)
            if not any(c.get(slot, size) for c in edge.covers[:_TIERS]):
                edge.stamps.pop(slot, None)

    def _split(self, edge: Edge, at: int) -> Edge:
        upper = self._tree.split(edge, at)
        for tier in Tier:
            for slot in upper.covers[tier].part.keys() | set(ones(upper.covers[tier].full)):
                instance = self._slots[slot]
                if instance is None or slot not in upper.stamps:
                    continue  # its touch follows
                if not edge.covers[tier].get(slot, edge.size):
                    self._queue(instance, tier, upper)
        return upper

    def _touch(self, instance: _Instance, edge: Edge, upto: int) -> None:
        """Everything held from the root to block `upto` of `edge` is now the most recent."""
        slot = instance.slot
        if any(c.get(slot, edge.size) >> upto for c in edge.covers[:_TIERS]):
            edge = self._split(edge, upto)
        open_tiers = list(Tier)
        at: Edge | None = edge
        while at is not None:
            held = [tier for tier in Tier if at.covers[tier].get(slot, at.size)]
            if held:
                at.stamps[slot] = self._position
            for tier in held:
                if tier in open_tiers:
                    open_tiers.remove(tier)
                    self._queue(instance, tier, at)
            at = at.parent

    def _queue(self, instance: _Instance, tier: int, edge: Edge) -> None:
        queue = instance.queues[tier]
        entry = (edge.stamps[instance.slot], -edge.end, next(self._ties), edge)
        heappush(queue, entry)
        if len(queue) > 64 and len(queue) > 4 * len(self._tree.first):
            kept: dict[int, tuple[int, int, int, Edge]] = {}
            for item in queue:
                if self._valid(instance, tier, item):
                    kept[id(item[3])] = item
            queue[:] = kept.values()
            heapify(queue)

    def _queue_above(self, instance: _Instance, tier: int, edge: Edge | None) -> None:
        """Queue the nearest edge at or above `edge` where the instance holds something."""
        while edge is not None:
            if edge.covers[tier].get(instance.slot, edge.size):
                self._queue(instance, tier, edge)
                return
            edge = edge.parent

    def _valid(self, instance: _Instance, tier: int, item: tuple[int, int, int, Edge]) -> bool:
        edge = item[3]
        stamp = edge.stamps.get(instance.slot)
        return stamp == item[0] and edge.covers[tier].get(instance.slot, edge.size) != 0

    def _evict(self, instance: _Instance, tier: Tier) -> None:
        """Drop the least recently used blocks beyond the capacity, the deepest of them first."""
        limit = instance.limits[tier]
        if limit is None:
            return
        queue = instance.queues[tier]
        while (excess := instance.counts[tier] - limit) > 0:
            item = heappop(queue)
            if not self._valid(instance, tier, item):
                continue
            edge = item[3]
            blocks = edge.covers[tier].get(instance.slot, edge.size)
            if blocks.bit_count() > excess:
                heappush(queue, item)
                blocks = _highest(blocks, excess)
            self._evicted += blocks.bit_count()
            self._unset(instance, tier, edge, blocks)
            self._tree.prune(edge)

    def _drop(self, instance: _Instance, fact: Dropped) -> None:
        for key in _each(fact.keys):
            place = self._tree.find(key)
            if place is None:
                continue
            edge, at = place
            if edge.covers[fact.tier].get(instance.slot, edge.size) >> at & 1:
                self._unset(instance, fact.tier, edge, 1 << at)
                self._tree.prune(edge)

    def _expire(self, instance: _Instance, fact: Expired) -> None:
        for key in _each(fact.keys):
            for tier in Tier:
                place = self._tree.find(key)
                if place is None:
                    break
                edge, at = place
                held = edge.covers[tier].get(instance.slot, edge.size)
                sure = edge.covers[tier + _TIERS].get(instance.slot, edge.size)
                if (held & ~sure) >> at & 1:
                    self._unset(instance, tier, edge, 1 << at)
                    self._tree.prune(edge)

    def _clear(self, instance: _Instance) -> None:
        slot = instance.slot
        edges = [edge for edge in self._tree.first.values() if slot in edge.stamps]
        for edge in edges:
            for cover in edge.covers:
                cover.put(slot, 0, edge.size)
            del edge.stamps[slot]
        instance.counts = [0] * _TIERS
        instance.sums = [0] * PLANES
        instance.queues = [[] for _ in range(_TIERS)]
        for edge in edges:
            if self._tree.first.get(edge.keys[:KEY_BYTES]) is edge:
                self._tree.prune(edge)


def _packed(key: BlockKey) -> bytes:
    return key.to_bytes(KEY_BYTES, "little")


def _each(keys: bytes) -> list[bytes]:
    return [keys[b : b + KEY_BYTES] for b in range(0, len(keys) - KEY_BYTES + 1, KEY_BYTES)]


def _key_sum(edge: Edge, blocks: int) -> int:
    keys = memoryview(edge.keys).cast("Q")
    return sum(keys[b] for b in ones(blocks))


def _highest(blocks: int, number: int) -> int:
    """The `number` highest set bits; there are more than that."""
    return sum(1 << b for b in ones(blocks)[-number:])
