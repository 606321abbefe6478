"""The prefix index: facts in, cached blocks of a prompt per instance out."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from extproc.index.cover import encode, lead, ones
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
from extproc.index.instance import TIERS, Instance
from extproc.index.keys import common_prefix, key_sum, reverse, same_keys
from extproc.index.scope import Scope
from extproc.index.tree import HELD_CPU, MAX_EDGE, Edge, Tree
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, InstanceId, PackedKeys

BLOCK_BYTES = 24
"""What a held block costs at most, in edges of 100 blocks and more (docs/index.md)."""

_SLICE = 200
"""Steps of bulk work that one call does at most; a step takes up to 10 µs."""

_SWEEP = 2048
"""Edges that one slice looks at for slots that have gone."""

_JOIN_OTHERS = 4
"""An instance appends to an edge in place where so many others at most hold all of it: they become
partial holders, one number each."""

_PLANES = (
    tuple((tier, tier + TIERS) for tier in range(TIERS)),
    tuple((tier,) for tier in range(TIERS)),
)
"""The planes that a fact marks, by whether it asserts a chain and by tier."""

_DIGEST_MASK = (1 << 64) - 1
_GROUPS = 4096
_new_tuple = tuple.__new__


class Depths(NamedTuple):
    """Leading blocks of a prompt that an instance holds without a hole."""

    gpu: int
    """On the GPU."""
    any: int
    """On the GPU or a slower tier; at least `gpu`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large an index may grow beyond what its instances' capacities allow; None is no bound.

    A bound counts `BLOCK_BYTES` for every block that an instance holds, though instances that share
    an edge share most of it: it is kept exactly, the same on every replica, and memory stays below.
    Replicas must have equal bounds, or their indexes differ.
    """

    pool_bytes: int | None = None
    tenant_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The index in numbers.

    blocks: different blocks in the tree. held: (instance, tier, block) triples. refused: facts that
    could not be filed, by reason. evicted: triples that were dropped to make room, by whose limit
    it was. backlog: facts that are not folded yet. table_bytes: the table of all blocks.
    """

    blocks: int
    edges: int
    instances: int
    held: int
    evicted: dict[str, int]
    refused: dict[str, int]
    backlog: int
    table_bytes: int


class PrefixIndex:
    """Who holds which prefix, as a fold over facts: pure, without a clock, the same everywhere.

    Nothing here raises on a fact: what cannot be filed is counted in `stats().refused`.

    A fact that means much work (a capacity that shrinks, thousands of removals in no order) is
    folded in slices of at most 2 ms, and the facts after it wait in a backlog, which every `apply`
    and every `step` works off; `match` sees the state so far. Clearing an instance counts at once,
    whatever it held, and is tidied up afterwards.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self.tree = Tree()
        """The structure, for dumps; only the index changes it."""
        self._ruins: list[Tree] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything, instances and counters included. Memory is given back in slices."""
        if self.tree.edges:
            self._ruins.append(self.tree)
        pool_bytes = self._bounds.pool_bytes
        self.tree = Tree()
        self._instances: dict[InstanceId, Instance] = {}
        self._slots: list[Instance | None] = []
        self._names: list[InstanceId] = []
        self._free_slots: list[int] = []
        self._live = 0
        self._groups: dict[int, tuple[InstanceId, ...]] = {}
        self._sweeping = 0
        self._sweep_at = 0
        self._rubbish: list[dict[int, Edge]] = []
        self._pool = Scope("pool", pool_bytes // BLOCK_BYTES) if pool_bytes is not None else None
        self._tenants: dict[str, Scope] = {}
        self._tenants_kept = 0
        self._bounded = self._bounds != Bounds()
        self._on_cpu = False
        self.position = 0
        """Facts folded so far."""
        self._backlog: deque[Fact] = deque()
        self._rest: Fact | None = None
        self._evicted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    # What is asked

    def match(self, keys: PackedKeys) -> dict[InstanceId, Depths]:
        """Leading blocks of the prompt per instance; one that holds none is absent.

        keys: chained, root first. Never raises, never writes. O(edges on the path + log blocks +
        instances found); about 0.3 µs an edge.
        """
        if self._on_cpu:
            return self._match_tiers(keys)
        first = self.tree.first
        alive = self._live
        total = len(keys)
        found: dict[InstanceId, Depths] = {}
        at = 0
        while at < total:
            edge = first[keys[at]].get(keys[at : at + 8])
            if edge is None:
                break
            edge_keys = edge.keys
            end = at + len(edge_keys)
            whole = edge_keys[-8:] == keys[end - 8 : end]
            if not whole:
                end = at + common_prefix(edge_keys, 0, keys, at) * 8
            lost = alive & ~edge.full
            if lost:
                alive ^= self._leave(found, edge.part, lost, at >> 3, end >> 3)
                if not alive:
                    return found
            at = end
            if not whole:
                break
        self._found_all(found, alive, at >> 3)
        return found

    def _leave(
        self,
        found: dict[InstanceId, Depths],
        part: dict[int, int] | None,
        lost: int,
        start: int,
        stop: int,
    ) -> int:
        """Note how far the slots of `lost` go that hold less than blocks `start` to `stop`.

        Returns these slots; the others hold enough.
        """
        ended = 0
        if part is not None:
            names = self._names
            for slot, number in part.items():
                if lost >> slot & 1:
                    depth = start + lead(number)
                    if depth >= stop:
                        lost ^= 1 << slot
                        continue
                    ended |= 1 << slot
                    if depth:
                        found[names[slot]] = _new_tuple(Depths, (depth, depth))
        self._found_all(found, lost ^ ended, start)
        return lost

    def _match_tiers(self, keys: PackedKeys) -> dict[InstanceId, Depths]:
        """`match` where some blocks are on a slower tier: the same walk for two depths at once."""
        first = self.tree.first
        on_gpu = anywhere = self._live
        gpu: dict[InstanceId, Depths] = {}
        deepest: dict[InstanceId, Depths] = {}
        total = len(keys)
        at = 0
        while at < total and anywhere:
            edge = first[keys[at]].get(keys[at : at + 8])
            if edge is None:
                break
            size = common_prefix(edge.keys, 0, keys, at)
            start, stop = at >> 3, (at >> 3) + size
            if on_gpu:
                on_gpu ^= self._leave(gpu, edge.part, on_gpu & ~edge.full, start, stop)
            cpu = edge.plane(HELD_CPU)
            if cpu is None:
                anywhere ^= self._leave(deepest, edge.part, anywhere & ~edge.full, start, stop)
            else:
                both = {
                    slot: encode(edge.get(slot, edge.size) | cpu.get(slot, edge.size))
                    for slot in ones(anywhere & ~edge.full & ~cpu.full)
                    if edge.has(slot)
                }
                lost = anywhere & ~edge.full & ~cpu.full
                anywhere ^= self._leave(deepest, both, lost, start, stop)
            at += size * KEY_BYTES
            if size < edge.size:
                break
        self._found_all(gpu, on_gpu, at >> 3)
        self._found_all(deepest, anywhere, at >> 3)
        none = Depths(0, 0)
        return {name: Depths(gpu.get(name, none).gpu, d.gpu) for name, d in deepest.items()}

    def _found_all(self, found: dict[InstanceId, Depths], slots: int, depth: int) -> None:
        """All these slots go that far."""
        if depth and slots:
            names = self._groups.get(slots)
            if names is None:
                names = self._name_group(slots)
            found.update(dict.fromkeys(names, Depths(depth, depth)))

    def _name_group(self, slots: int) -> tuple[InstanceId, ...]:
        """The names of a mask, remembered: the same few masks are met again and again."""
        if len(self._groups) >= _GROUPS:
            self._groups.clear()
        names = tuple(self._names[slot] for slot in ones(slots))
        self._groups[slots] = names
        return names

    def held_blocks(self, instance: InstanceId) -> int:
        """Blocks that the instance holds, a block in two tiers counted twice; 0 if unknown."""
        known = self._instances.get(instance)
        return sum(known.counts) if known else 0

    @property
    def digest(self) -> int:
        """64 bits over the content: equal content, equal digest. O(instances).

        Content is who holds which block in which tier and whether that is confirmed, and the
        instances with their block sizes and capacities. Comparable where the backlog is empty.
        """
        total = 0
        for instance in self._instances.values():
            name = instance.name
            head = f"{instance.block_size} {instance.limits} {name}"
            total += xxhash.xxh3_64_intdigest(head.encode())
            for plane, keys in enumerate(instance.sums):
                total += keys * xxhash.xxh3_64_intdigest(f"{plane} {name}".encode())
        return total & _DIGEST_MASK

    def instances(self) -> list[Instance]:
        """All that have joined, in that order, for dumps; only the index changes them."""
        return list(self._instances.values())

    @property
    def backlog(self) -> int:
        """Facts that are not (wholly) folded yet."""
        return len(self._backlog) + (self._rest is not None)

    def stats(self) -> IndexStats:
        """Sizes and counters. O(instances)."""
        return IndexStats(
            blocks=self.tree.blocks,
            edges=self.tree.edges,
            instances=len(self._instances),
            held=sum(sum(i.counts) for i in self._instances.values()),
            evicted=dict(self._evicted),
            refused=dict(self._refused),
            backlog=self.backlog,
            table_bytes=self.tree.table.nbytes,
        )

    # What is told

    def apply(self, fact: Fact) -> None:
        """Fold one fact, or queue it behind bulk work. Facts come in log order; never raises."""
        if self._rest is not None or self._backlog:
            self._backlog.append(fact)
            self.step()
            return
        self.position += 1
        self._fold(fact)
        tree = self.tree
        if tree.ghosts or self._rubbish or self._ruins:
            self._tidy(_SWEEP // 16)
        if tree.table.waiting >= tree.table.due:
            tree.work()

    def step(self) -> bool:
        """Do one slice (≤ 2 ms) of what is left: the backlog first, then upkeep. False: all done.

        For the idle moments of who owns the index; `apply` does enough of it to keep up.
        """
        rest, self._rest = self._rest, None
        if rest is not None:
            self._fold(rest)
        elif self._backlog:
            self.position += 1
            self._fold(self._backlog.popleft())
        elif self.tree.ghosts or self._rubbish or self._ruins:
            self._tidy(_SWEEP)
        else:
            return self.tree.work()
        return True

    def _tidy(self, looks: int) -> None:
        """One slice of giving back what is out of use."""
        if self._rubbish:
            self._rubbish.pop()
        elif self._ruins:
            if not self._ruins[-1].dismantle(looks // 2):
                self._ruins.pop()
        else:
            self._sweep(looks)

    def _fold(self, fact: Fact) -> None:
        instance = self._instances.get(fact.instance)
        if type(fact) is Joined:
            self._join(fact)
        elif instance is None:
            self._refused["unknown_instance"] += 1
        elif type(fact) is Held:
            self._hold(instance, fact)
        elif type(fact) is Dropped:
            self._drop(instance, fact)
        elif type(fact) is Expired:
            self._expire(instance, fact)
        elif type(fact) is Capacity:
            instance.limits[fact.tier] = max(0, fact.blocks)
            limits = [limit for i in self._instances.values() for limit in i.limits if limit]
            self.tree.room = sum(limits)
            if not self._evict(instance, fact.tier):
                self._rest = fact
        elif type(fact) is Cleared:
            self._clear(instance)
        elif type(fact) is Left:
            self._remove(instance)

    # Instances

    def _join(self, fact: Joined) -> None:
        known = self._instances.get(fact.instance)
        if known is not None:
            self._remove(known)
        self._place(fact.instance, fact.block_size)

    def _place(self, name: InstanceId, block_size: int) -> Instance:
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = len(self._slots)
            self._slots.append(None)
            self._names.append(name)
        self._names[slot] = name
        instance = Instance(name, slot, block_size)
        self._slots[slot] = instance
        self._instances[name] = instance
        self._live |= instance.bit
        return instance

    def _remove(self, instance: Instance) -> None:
        """It is gone for every question at once; its slot is swept out of the edges in slices."""
        del self._instances[instance.name]
        self._slots[instance.slot] = None
        self._live ^= instance.bit
        self._groups.clear()
        for scope, count in instance.scopes.items():
            scope.held -= count
        instance.scopes.clear()
        for tails in instance.tails:
            self._rubbish += [shard for shard in tails.shards() if len(shard) > _SWEEP]
        instance.tails = []
        if any(instance.counts):
            self.tree.ghosts |= instance.bit
        else:
            self._free_slots.append(instance.slot)

    def _clear(self, instance: Instance) -> None:
        self._remove(instance)
        again = self._place(instance.name, instance.block_size)
        again.limits = instance.limits

    def _sweep(self, looks: int) -> None:
        """One slice of forgetting ghosts: a sweep over all edges, for the ghosts at its start."""
        tree = self.tree
        if not self._sweeping:
            self._sweeping, self._sweep_at = tree.ghosts, 1
        ghosts, at, end = self._sweeping, self._sweep_at, tree.store.end
        while at < end and looks > 0:
            edge = tree.store.get(at)
            at += 1
            looks -= 1
            if edge is not None and tree.exorcise(edge, ghosts):
                looks -= 32
        self._sweep_at = at
        if at >= end:
            tree.ghosts &= ~ghosts
            self._free_slots.extend(ones(ghosts))
            self._sweeping = 0

    # Blocks that are held

    def _hold(self, instance: Instance, fact: Held) -> None:
        keys, tier, source = fact.keys, fact.tier, fact.source
        if len(keys) % KEY_BYTES:
            self._refused["malformed"] += 1
            return
        tree = self.tree
        chain = source is Source.PICK or source is Source.ANSWER
        planes = _PLANES[chain][tier]
        edge: Edge | None = None
        upto = 0
        if fact.parent:
            place = tree.find(fact.parent)
            if place is None:
                self._refused["unknown_parent"] += 1
                return
            edge, upto = place
            if not edge.full & self._live and not edge.held_at(upto, self._live):
                self._refused["unknown_parent"] += 1
                return
            upto += 1
            if chain:
                self._hold_chain(instance, tier, edge, upto)
        at, end = 0, len(keys)
        while at < end:
            if edge is None or upto == edge.size:
                child = tree.first[keys[at]].get(keys[at : at + KEY_BYTES])
                if child is None:
                    edge = self._append(instance, planes, edge, keys[at:], fact.tenant)
                    upto = edge.size
                    break
                if child.parent is not edge:
                    self._refused["conflict"] += 1
                    break
                edge, upto = child, 0
            same = common_prefix(edge.keys, upto * KEY_BYTES, keys, at)
            if same:
                self._mark(instance, planes, edge, upto, upto + same)
                at += same * KEY_BYTES
                upto += same
            if at < end and upto < edge.size:
                if not upto:  # its first key is right, its second is not: no chain
                    self._refused["conflict"] += 1
                    edge = edge.parent
                    upto = edge.size if edge is not None else 0
                    break
                edge = self._split(edge, upto)
        if edge is not None:
            self._touch(instance, edge, upto)
        if tier is Tier.CPU:
            self._on_cpu = True
        limit = instance.limits[tier]
        done = limit is None or instance.counts[tier] <= limit or self._evict(instance, tier)
        if not (done and (not self._bounded or self._keep_bounds(fact.tenant))):
            self._rest = Held(instance.name, tier, NO_BLOCK, PackedKeys(b""), source, fact.tenant)

    def _hold_chain(self, instance: Instance, tier: Tier, edge: Edge, upto: int) -> None:
        """The instance holds everything from the root to block `upto` of `edge`, as expected."""
        bit = instance.bit if tier is Tier.GPU else 0
        at: Edge | None = edge
        while at is not None:
            if not at.full & bit:
                self._mark(instance, (tier,), at, 0, upto)
            at = at.parent
            if at is not None:
                upto = at.size

    def _mark(
        self, instance: Instance, planes: tuple[int, ...], edge: Edge, start: int, stop: int
    ) -> None:
        """The instance has these blocks of an edge in these planes, the first of them the tier."""
        slot = instance.slot
        wanted = (1 << stop) - (1 << start)
        if not edge.has(slot):
            edge.welcome(slot)
        for plane in planes:
            cover = edge.own_plane(plane)
            had = cover.get(slot, edge.size)
            new = wanted & ~had
            if new:
                cover.put(slot, had | new, edge.size)
                instance.sums[plane] += _block_sum(edge, new)
                if plane < TIERS:
                    self._count(instance, plane, edge, new.bit_count())

    def _append(
        self,
        instance: Instance,
        planes: tuple[int, ...],
        edge: Edge | None,
        keys: bytes,
        tenant: str,
    ) -> Edge:
        """New blocks after `edge`, in it where that hurts nobody, else in new edges below it."""
        slot, bit = instance.slot, instance.bit
        tree = self.tree
        total, sums = key_sum(keys), instance.sums
        for plane in planes:
            sums[plane] += total
        added = len(keys) // KEY_BYTES
        if (
            edge is not None
            and not edge.kids
            and edge.size < MAX_EDGE
            and (edge.full & ~bit).bit_count() <= _JOIN_OTHERS
        ):
            room = (MAX_EDGE - edge.size) * KEY_BYTES
            old = edge.size
            if not edge.full & bit and not edge.has(slot):
                edge.welcome(slot)
            tree.extend(edge, keys[:room], bit, planes)
            for plane in planes:
                cover = edge.own_plane(plane) if plane else edge
                if not cover.full & bit:
                    blocks = cover.get(slot, edge.size) | (1 << edge.size) - (1 << old)
                    cover.put(slot, blocks, edge.size)
            keys = keys[room:]
        tenant = edge.tenant if edge is not None else tenant
        while keys:
            edge = tree.add(edge, keys[: MAX_EDGE * KEY_BYTES], tenant)
            for plane in planes:
                edge.own_plane(plane).full = bit
            keys = keys[MAX_EDGE * KEY_BYTES :]
        assert edge is not None
        self._count(instance, planes[0], edge, added)
        return edge

    # Recency

    def _touch(self, instance: Instance, edge: Edge, upto: int) -> None:
        """What the instance holds from the root to block `upto` of `edge` is the most recent."""
        slot, bit, now = instance.slot, instance.bit, self.position
        if upto < edge.size and any(edge.blocks(tier, slot) >> upto for tier in Tier):
            edge = self._split(edge, upto)
        if instance.counts[Tier.CPU]:
            self._queue_cpu(instance, edge)
        tails = instance.tails[Tier.GPU]
        tail: Edge | None = None
        below: Edge | None = None
        at: Edge | None = edge
        while at is not None:
            on_gpu = at.full & bit or (at.part is not None and slot in at.part)
            if on_gpu or (at.slow is not None and at.has(slot)):
                stamps = at.stamps
                if stamps is None:
                    old, at.stamp = at.stamp, now
                else:
                    old = stamps.get(slot, 0)
                    stamps[slot] = now
                if on_gpu:
                    if tail is None:
                        tail = at
                        known = tails.move(old, now, at)
                    elif known := tails.get(old) is at:
                        tails.drop(old)
                    if known and self._bounded:
                        self._left_queue(instance, at, old)
                if at.kids == 1 and below is not None and self.tree.agree(at, below):
                    self.tree.merge(at, below)
                    at = below
            below = at
            at = at.parent
        if tail is not None and self._bounded:
            self._queued(instance, tail, now)

    def _queue_cpu(self, instance: Instance, edge: Edge) -> None:
        """`_touch` for the slower tier's order, before the stamps change."""
        slot, now = instance.slot, self.position
        tails = instance.tails[Tier.CPU]
        tail: Edge | None = None
        at: Edge | None = edge
        while at is not None:
            cover = at.plane(HELD_CPU)
            if cover is not None and cover.holds(slot):
                if tail is None:
                    tail = at
                old = at.stamp_of(slot)
                if tails.get(old) is at:
                    tails.drop(old)
                    self._left_queue(instance, at, old)
            at = at.parent
        if tail is not None:
            tails.put(now, tail)
            if self._bounded:
                self._queued(instance, tail, now)

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cut an edge before block `at`, with the stamps and queues of its holders."""
        stamps = {slot: edge.stamp_of(slot) for slot in edge.holders()}
        upper = self.tree.split(edge, at)
        for part in (upper, edge):
            holders = part.holders()
            part.stamps = None
            if len(holders) > 1:
                part.stamps = {slot: stamps[slot] for slot in holders}
            elif holders:
                part.stamp = stamps[holders.pop()]
        for slot in upper.holders():
            instance = self._slots[slot]
            if instance is None:
                continue
            for tier, tails in enumerate(instance.tails):
                if tails.get(stamps[slot]) is edge and not edge.blocks(tier, slot):
                    tails.put(stamps[slot], upper)
        return upper

    # Blocks that go

    def _unset(self, instance: Instance, tier: int, edge: Edge, gone: int) -> None:
        """Take blocks that the instance holds in this tier away from it."""
        slot, size = instance.slot, edge.size
        total = _block_sum(edge, gone)
        for plane in (tier, tier + TIERS):
            cover = edge.plane(plane)
            if cover is None:
                continue
            had = cover.get(slot, size)
            lost = had & gone
            if lost:
                cover.put(slot, had ^ lost, size)
                instance.sums[plane] -= total if lost == gone else _block_sum(edge, lost)
        self._count(instance, tier, edge, -gone.bit_count())
        cover = edge.plane(tier)
        if cover is None or not cover.holds(slot):
            self._hand_up(instance, tier, edge)
            edge.tidy()
            if not edge.has(slot):
                edge.forget(slot)
        if gone >> (size - 1):  # its last block may now be nobody's
            self.tree.prune(edge)

    def _hand_up(self, instance: Instance, tier: int, edge: Edge) -> None:
        """The instance's queue entry at an edge that it has left goes to the edge above.

        Only if the same fact touched that one last: otherwise a later fact's entry is below it.
        """
        slot = instance.slot
        stamp = edge.stamp_of(slot)
        tails = instance.tails[tier]
        if tails.get(stamp) is not edge:
            return
        above = edge.parent
        while above is not None:
            cover = above.plane(tier)
            if cover is not None and cover.holds(slot):
                break
            above = above.parent
        if above is not None and above.stamp_of(slot) == stamp:
            tails.put(stamp, above)
        else:
            tails.drop(stamp)
            self._left_queue(instance, edge, stamp)

    def _evict(self, instance: Instance, tier: Tier) -> bool:
        """Drop the least recently used blocks beyond the capacity; False: a slice is not enough."""
        limit = instance.limits[tier]
        if limit is None:
            return True
        for _ in range(_SLICE):
            excess = instance.counts[tier] - limit
            if excess <= 0:
                return True
            stamp = instance.tails[tier].oldest()
            self._evict_oldest(instance, tier, stamp, excess, "capacity")
        return instance.counts[tier] <= limit

    def _evict_oldest(
        self, instance: Instance, tier: int, stamp: int, most: int, reason: str
    ) -> None:
        """Drop the deepest blocks, at most so many, at the queue's entry of this stamp."""
        edge = instance.tails[tier][stamp]
        blocks = edge.blocks(tier, instance.slot)
        count = blocks.bit_count()
        if count > most:
            blocks = _highest(blocks, count, most)
            count = most
        self._evicted[reason] += count
        self._unset(instance, tier, edge, blocks)

    def _drop(self, instance: Instance, fact: Dropped) -> None:
        at = 0
        for _ in range(_SLICE):
            edge, wanted, at = self._next_run(fact.keys, at)
            if edge is None:
                return
            gone = wanted & edge.blocks(fact.tier, instance.slot)
            if gone:
                self._unset(instance, fact.tier, edge, gone)
        self._rest = Dropped(fact.instance, fact.tier, PackedKeys(fact.keys[at:]), fact.source)

    def _expire(self, instance: Instance, fact: Expired) -> None:
        at, slot = 0, instance.slot
        for _ in range(_SLICE):
            edge, wanted, at = self._next_run(fact.keys, at)
            if edge is None:
                return
            expected = [
                wanted & edge.blocks(tier, slot) & ~edge.blocks(tier + TIERS, slot) for tier in Tier
            ]
            for tier, gone in enumerate(expected):
                if gone:
                    self._unset(instance, tier, edge, gone)
        self._rest = Expired(fact.instance, PackedKeys(fact.keys[at:]))

    def _next_run(self, keys: bytes, at: int) -> tuple[Edge | None, int, int]:
        """The next keys from byte `at` on that are neighbours in one edge, in either direction.

        Returns the edge (None at the end), the blocks as a bitset, and the byte after them. Unknown
        keys are skipped.
        """
        while at + KEY_BYTES <= len(keys):
            place = self.tree.find(BlockKey(int.from_bytes(keys[at : at + KEY_BYTES], "little")))
            if place is None:
                at += KEY_BYTES
                continue
            edge, block = place
            if at + KEY_BYTES == len(keys):
                return edge, 1 << block, len(keys)
            rest = keys[at:]
            start = block * KEY_BYTES
            same = same_keys(edge.keys[start:], rest)
            low = block
            if same == 1 and block:
                start = max(0, (block + 1) * KEY_BYTES - len(rest))
                same = same_keys(reverse(edge.keys[start : (block + 1) * KEY_BYTES]), rest)
                low = block + 1 - same
            return edge, ((1 << same) - 1) << low, at + same * KEY_BYTES
        return None, 0, at

    # Bounds

    def _scopes(self, edge: Edge) -> list[Scope]:
        """The bounds that an edge counts in."""
        scopes = [] if self._pool is None else [self._pool]
        limit, name = self._bounds.tenant_bytes, edge.tenant
        if limit is not None and name:
            scope = self._tenants.get(name)
            if scope is None:
                scope = self._tenants[name] = Scope("tenant", limit // BLOCK_BYTES)
            scopes.append(scope)
        return scopes

    def _count(self, instance: Instance, tier: int, edge: Edge, blocks: int) -> None:
        """The instance has so many blocks more (or fewer) of this edge."""
        instance.counts[tier] += blocks
        if self._bounded:
            for scope in self._scopes(edge):
                instance.scopes[scope] = instance.scopes.get(scope, 0) + blocks
                if not instance.scopes[scope]:
                    del instance.scopes[scope]
                scope.held += blocks

    def _queued(self, instance: Instance, edge: Edge, stamp: int) -> None:
        for scope in self._scopes(edge):
            scope.order.put(stamp, instance.slot)

    def _left_queue(self, instance: Instance, edge: Edge, stamp: int) -> None:
        if instance.tier_of(stamp) is None:
            for scope in self._scopes(edge):
                scope.order.drop(stamp)

    def _keep_bounds(self, tenant: str) -> bool:
        """Drop what was touched longest ago, whoever holds it; False: a slice is not enough."""
        for scope in (self._tenants.get(tenant), self._pool):
            steps = _SLICE
            while scope is not None and scope.held > scope.limit:
                if not steps:
                    return False
                steps -= 1
                stamp = scope.order.oldest()
                instance = self._slots[scope.order[stamp]]
                tier = instance.tier_of(stamp) if instance is not None else None
                if instance is None or tier is None:  # who was touched then has gone
                    scope.order.drop(stamp)
                else:
                    excess = scope.held - scope.limit
                    self._evict_oldest(instance, tier, stamp, excess, scope.reason)
        if len(self._tenants) > 2 * self._tenants_kept + 64:
            self._tenants = {name: scope for name, scope in self._tenants.items() if scope.held}
            self._tenants_kept = len(self._tenants)
        return True


def _block_sum(edge: Edge, blocks: int) -> int:
    """Sum of the keys of these blocks, which are mostly one run."""
    low = (blocks & -blocks).bit_length() - 1
    run = blocks >> low
    if run & (run + 1) == 0:
        return key_sum(edge.keys[low * KEY_BYTES : blocks.bit_length() * KEY_BYTES])
    keys = memoryview(edge.keys).cast("Q")
    return sum(keys[b] for b in ones(blocks))


def _highest(blocks: int, count: int, number: int) -> int:
    """The `number` highest of `count` set bits."""
    if blocks & (blocks + 1) == 0:
        return blocks & ~((1 << count - number) - 1)
    return sum(1 << b for b in ones(blocks)[-number:])
