"""What every instance holds and in which order it was used: the rules of docs/index.md."""

from collections import Counter
from collections.abc import Iterator

from extproc.index.cover import ones
from extproc.index.edge import HELD_CPU, HELD_GPU, SURE_GPU, Edge, Tenancy, alone
from extproc.index.facts import Capacity, Dropped, Expired, Held, Source, Tier
from extproc.index.instance import Instance
from extproc.index.keys import common_prefix, key_sum, reverse, same_keys
from extproc.index.roster import Roster
from extproc.index.scope import Scopes
from extproc.index.snapshot import Cut
from extproc.index.sums import TIERS
from extproc.index.tree import MAX_EDGE, Tree
from extproc.terms import KEY_BYTES, BlockKey

_SLICE = 64
"""Units of 8 µs that one slice of bulk work is: 2 ms are kept on a busy machine as well."""

_UNIT_BLOCKS, _UNIT_HOLDERS = 64, 32
"""So many blocks, or partial holders, of an edge make one more unit of a removal."""

_JOIN_OTHERS = 4
"""An instance appends to an edge in place where so many others at most hold all of it: they become
partial holders, one number each."""

_EXPECTED = (Source.PICK, Source.ANSWER)
"""Who asserts a whole chain, none of it confirmed."""

_PLANES = tuple(
    tuple((tier,) if source in _EXPECTED else (tier, tier + TIERS) for tier in range(TIERS))
    for source in Source
)
"""The planes that a fact marks, by source and tier."""


class Holdings:
    """Files what is held, drops what is not any more, and keeps the limits.

    now: position in the log of the fact that is being folded. rest: what is left of a fact that was
    too much for one slice, a slice an item; it goes on before anything else.
    on_cpu: whether anything ever was on the slower tier. cut: the snapshot that is being taken.
    evicted, refused: counters by reason.
    """

    def __init__(self, tree: Tree, roster: Roster, scopes: Scopes) -> None:
        self.tree = tree
        self._roster = roster
        self.scopes = scopes
        self.now = 0
        self.rest: Iterator[None] | None = None
        self.on_cpu = False
        self.cut: Cut | None = None
        self.evicted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def hold(self, instance: Instance, fact: Held) -> None:
        """File, touch and make room. O(path + keys); what cannot be filed is counted."""
        keys, tier, source = fact.keys, fact.tier, fact.source
        at, end = 0, len(keys)
        if end % KEY_BYTES:
            self.refused["malformed"] += 1
            return
        tree = self.tree
        planes = _PLANES[source][tier]
        edge: Edge | None = None
        upto = 0
        if fact.parent:
            place = tree.find(fact.parent)
            if place is None:
                self.refused["unknown_parent"] += 1
                return
            edge, upto = place
            if not edge.full & self._roster.live and not edge.held_at(upto, self._roster.live):
                self.refused["unknown_parent"] += 1
                return
            upto += 1
            if source in _EXPECTED:
                self._hold_chain(instance, tier, edge, upto)
        while at < end:
            if edge is None or upto == len(edge.keys) // KEY_BYTES:
                child = tree.first[keys[at]].get(keys[at : at + KEY_BYTES])
                if child is None:
                    edge = self._append(instance, planes, edge, keys[at:], fact.tenant)
                    upto = MAX_EDGE  # all of it
                    break
                if child.parent is not edge:
                    self.refused["conflict"] += 1
                    break
                if edge is None:
                    self._claim(child, fact.tenant)
                edge, upto = child, 0
            same = common_prefix(edge.keys, upto * KEY_BYTES, keys, at)
            if same:
                self._mark(instance, planes, edge, upto, upto + same)
                at += same * KEY_BYTES
                upto += same
            if at < end and upto < edge.size:
                if not upto:  # its first key is right, its second is not: no chain
                    self.refused["conflict"] += 1
                    edge = edge.parent
                    upto = edge.size if edge is not None else 0
                    break
                edge = self._split(edge, upto)
        if edge is not None:
            if upto < len(edge.keys) // KEY_BYTES and self._goes_on(instance, edge, upto):
                edge = self._split(edge, upto)
            self._touch(instance, edge)
        if tier:
            self.on_cpu = True
        limit = instance.limits[planes[0]]
        if self.scopes.any or (limit is not None and instance.counts[planes[0]] > limit):
            tenant = edge.tenant if edge is not None else ""
            self._begin(self._make_room(instance, tier, tenant))

    def limit(self, instance: Instance, fact: Capacity) -> None:
        """From now on the instance keeps at most so many blocks."""
        instance.limits[fact.tier] = max(0, fact.blocks)
        self._begin(self._make_room(instance, fact.tier, ""))

    def drop(self, instance: Instance, fact: Dropped) -> None:
        """Take these blocks from the instance. Neighbours go together, others cost 8 µs each."""
        if len(fact.keys) != KEY_BYTES:
            self._begin(self._drop(instance, fact))
        elif place := self.tree.find(BlockKey(int.from_bytes(fact.keys, "little"))):
            edge, block = place
            if edge.blocks(fact.tier, instance.slot) >> block & 1:
                self._unset(instance, fact.tier, edge, 1 << block)

    def expire(self, instance: Instance, fact: Expired) -> None:
        """Take the unconfirmed ones of these blocks from the instance, in every tier."""
        self._begin(self._expire(instance, fact))

    def go_on(self) -> None:
        """A slice of what is left."""
        if self.rest is not None:
            self._begin(self.rest)

    def _begin(self, slices: Iterator[None]) -> None:
        self.rest = slices if next(slices, self) is None else None

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
        if self.cut is not None:
            self.cut.save(edge)
        wanted = (1 << stop) - (1 << start)
        if not edge.has(slot):
            edge.welcome(slot)
        for plane in planes:
            had = edge.blocks(plane, slot)
            new = wanted & ~had
            if new:
                edge.own_plane(plane).put(slot, had | new, edge.size)
                instance.sums.shift(plane, block_sum(edge, new))
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
        bit, start, end = instance.bit, 0, len(keys)
        instance.sums.add(planes, keys)
        instance.counts[planes[0]] += end // KEY_BYTES
        if (
            edge is not None
            and (edge.more is None or not edge.more.kids)
            and (start := MAX_EDGE * KEY_BYTES - len(edge.keys)) > 0
            and (edge.full == bit or (edge.full & ~bit).bit_count() <= _JOIN_OTHERS)
        ):
            if self.cut is not None:
                self.cut.save(edge)
            fits = keys if end <= start else keys[:start]
            self.tree.extend(edge, fits, instance.slot, bit, planes)
            if self.scopes.any:
                self.count_scopes(instance, edge, len(fits) // KEY_BYTES)
            if end <= start:
                return edge
        else:
            start = 0
        tenancy = edge.tenancy if edge is not None else self.tenancy(tenant)
        for at in range(start, end, MAX_EDGE * KEY_BYTES):
            edge = self.tree.add(edge, keys[at : at + MAX_EDGE * KEY_BYTES], tenancy)
            for plane in planes:
                if plane == SURE_GPU:
                    edge.sure = alone(bit)
                else:
                    edge.own_plane(plane).full = bit
            if self.scopes.any:
                self.count_scopes(instance, edge, edge.size)
        assert edge is not None
        return edge

    # Recency

    @staticmethod
    def _goes_on(instance: Instance, edge: Edge, upto: int) -> bool:
        """Whether the instance holds anything of the edge from block `upto` on."""
        return any(edge.blocks(tier, instance.slot) >> upto for tier in Tier)

    def _touch(self, instance: Instance, edge: Edge) -> None:
        """What the instance holds from the root to the end of `edge` is the most recent."""
        slot, bit, now = instance.slot, instance.bit, self.now
        if self.cut is not None:
            self.cut.save_path(edge)
        if instance.counts[Tier.CPU]:
            self._queue_cpu(instance, edge)
        tails = instance.tails[Tier.GPU]
        tail: Edge | None = None
        below: Edge | None = None
        at: Edge | None = edge
        while at is not None:
            on_gpu = at.full & bit or (at.part is not None and slot in at.part)
            more = at.more
            if on_gpu or (more is not None and more.slow is not None and at.has(slot)):
                if more is None or (stamps := more.stamps) is None:
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
                    if known and self.scopes.any:
                        self._left_queue(instance, at, old)
                if (
                    more is not None
                    and more.kids == 1
                    and below is not None
                    and self.tree.agree(at, below)
                ):
                    self.tree.merge(at, below)
                    at = below
            below = at
            at = at.parent
        if tail is not None and self.scopes.any:
            self.queued(instance, tail, now)

    def _queue_cpu(self, instance: Instance, edge: Edge) -> None:
        """`_touch` for the slower tier's order, before the stamps change."""
        slot, now = instance.slot, self.now
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
            if self.scopes.any:
                self.queued(instance, tail, now)

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cut an edge before block `at`, with the stamps and queues of its holders."""
        if self.cut is not None:
            self.cut.save(edge)
        stamps = {slot: edge.stamp_of(slot) for slot in edge.holders()}
        upper = self.tree.split(edge, at)
        for part in (upper, edge):
            part.set_stamps({slot: stamps[slot] for slot in part.holders()})
            part.tidy()
        for slot in upper.holders():
            instance = self._roster.slots[slot]
            if instance is None:
                continue
            for tier, tails in enumerate(instance.tails):
                if tails.get(stamps[slot]) is edge and not edge.blocks(tier, slot):
                    tails.put(stamps[slot], upper)
        return upper

    # Blocks that go

    def _unset(self, instance: Instance, tier: int, edge: Edge, gone: int) -> None:
        """Take blocks that the instance holds in this tier away from it."""
        if self.cut is not None:
            self.cut.save_path(edge)  # the queue's entry may go to an edge above
        slot, size = instance.slot, edge.size
        low, high = (gone & -gone).bit_length() - 1, gone.bit_length()
        run = (
            edge.keys[low * KEY_BYTES : high * KEY_BYTES]
            if gone == (1 << high) - (1 << low)
            else b""
        )
        planes = edge.sole(instance.bit)
        if planes and tier == HELD_GPU and low and run and high == size:
            # The usual case: the only holder lets go of the end of a branch.
            instance.sums.remove(planes, run)
            self.tree.trim(edge, low)
            self._count(instance, tier, edge, low - size)
            return
        planes = ()
        for plane in (tier, tier + TIERS):
            had = edge.blocks(plane, slot)
            lost = had & gone
            if lost:
                edge.own_plane(plane).put(slot, had ^ lost, size)
                if run and lost == gone:
                    planes = (*planes, plane)
                else:
                    instance.sums.shift(plane, -block_sum(edge, lost))
        if planes:
            instance.sums.remove(planes, run)
        self._count(instance, tier, edge, -gone.bit_count())
        cover = edge.plane(tier)
        if cover is None or not cover.holds(slot):
            self._hand_up(instance, tier, edge)
            edge.tidy()
            if not edge.has(slot):
                edge.forget(slot)
        if high == size:  # its last block may now be nobody's
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

    def _drop(self, instance: Instance, fact: Dropped) -> Iterator[None]:
        spent = 0
        for edge, wanted in self._runs(fact.keys):
            spent += 1
            if edge is not None:
                gone = wanted & edge.blocks(fact.tier, instance.slot)
                if gone:
                    spent += _units(edge, gone)
                    self._unset(instance, fact.tier, edge, gone)
            if spent >= _SLICE:
                yield
                spent = 0

    def _expire(self, instance: Instance, fact: Expired) -> Iterator[None]:
        spent, slot = 0, instance.slot
        for edge, wanted in self._runs(fact.keys):
            spent += 1
            if edge is not None:
                expected = [
                    wanted & edge.blocks(tier, slot) & ~edge.blocks(tier + TIERS, slot)
                    for tier in Tier
                ]
                for tier, gone in zip(Tier, expected, strict=True):
                    if gone:
                        spent += _units(edge, gone)
                        self._unset(instance, tier, edge, gone)
            if spent >= _SLICE:
                yield
                spent = 0

    def _runs(self, keys: bytes) -> Iterator[tuple[Edge | None, int]]:
        """Keys that are neighbours in one edge, in either direction: the edge, and a bitset.

        A key that nobody knows is a run of its own, without an edge. Edges may change in between.
        """
        at, end = 0, len(keys) - len(keys) % KEY_BYTES
        while at < end:
            place = self.tree.find(BlockKey(int.from_bytes(keys[at : at + KEY_BYTES], "little")))
            if place is None:
                at += KEY_BYTES
                yield None, 0
                continue
            edge, low = place
            same = 1
            if at + KEY_BYTES < end:
                rest = keys[at : min(end, at + MAX_EDGE * KEY_BYTES)]
                stop = (low + 1) * KEY_BYTES
                if low and rest.startswith(edge.keys[stop - 16 : stop - 8], KEY_BYTES):
                    start = max(0, stop - len(rest))
                    same = same_keys(reverse(edge.keys[start:stop]), rest)
                    low += 1 - same
                else:
                    same = same_keys(edge.keys[stop - 8 :], rest)
            at += same * KEY_BYTES
            yield edge, ((1 << same) - 1) << low

    # Bounds

    def _make_room(self, instance: Instance, tier: Tier, tenant: str) -> Iterator[None]:
        """Drop what was used longest ago beyond the instance's capacity, and then the bounds'."""
        spent = 0
        limit = instance.limits[tier]
        while limit is not None and (excess := instance.counts[tier] - limit) > 0:
            stamp = instance.tails[tier].oldest()
            spent += self._evict_oldest(instance, tier, stamp, excess, "capacity")
            if spent >= _SLICE:
                yield
                spent = 0
        for scope in self.scopes.of(tenant):
            while (excess := scope.held - scope.limit) > 0:
                stamp = scope.order.oldest()
                holder = self._roster.slots[scope.order[stamp]]
                of = holder.tier_of(stamp) if holder is not None else None
                if holder is None or of is None:  # who was touched then has gone
                    scope.order.drop(stamp)
                    spent += 1
                else:
                    spent += self._evict_oldest(holder, of, stamp, excess, scope.reason)
                if spent >= _SLICE:
                    yield
                    spent = 0

    def _evict_oldest(
        self, instance: Instance, tier: int, stamp: int, most: int, reason: str
    ) -> int:
        """Drop the deepest blocks, at most so many, at the queue's entry of this stamp.

        Returns the units of work that it took.
        """
        edge = instance.tails[tier][stamp]
        blocks = edge.blocks(tier, instance.slot)
        count = blocks.bit_count()
        if count > most:
            blocks = _highest(blocks, count, most)
            count = most
        self.evicted[reason] += count
        units = 1 + _units(edge, blocks)
        self._unset(instance, tier, edge, blocks)
        return units

    def _count(self, instance: Instance, tier: int, edge: Edge, blocks: int) -> None:
        """The instance has so many blocks more (or fewer) of this edge."""
        instance.counts[tier] += blocks
        if self.scopes.any:
            self.count_scopes(instance, edge, blocks)

    def count_scopes(self, instance: Instance, edge: Edge, blocks: int) -> None:
        """`_count` for the bounds."""
        tenancy = edge.tenancy
        if tenancy is not None:
            tenancy.held[instance.slot] = tenancy.held.get(instance.slot, 0) + blocks
            if not tenancy.held[instance.slot]:
                del tenancy.held[instance.slot]
        for scope in self.scopes.of(edge.tenant):
            instance.scopes[scope] = instance.scopes.get(scope, 0) + blocks
            if not instance.scopes[scope]:
                del instance.scopes[scope]
            scope.held += blocks

    def tenancy(self, tenant: str) -> Tenancy | None:
        """That of a chain which a fact of this tenant begins; None where it makes no difference."""
        return Tenancy(tenant, {}) if tenant or self.scopes.any else None

    def _claim(self, root: Edge, tenant: str) -> None:
        """A fact comes to this chain: it is counted for the fact's tenant if nobody holds it."""
        tenancy = root.tenancy
        if tenancy is not None and tenancy.tenant != tenant:
            live = self._roster.live
            if self.scopes.any and not any(live >> slot & 1 for slot in tenancy.held):
                tenancy.tenant = tenant

    def queued(self, instance: Instance, edge: Edge, stamp: int) -> None:
        """The instance has an entry of this stamp, the newest, in one of its orders."""
        for scope in self.scopes.of(edge.tenant):
            scope.order.put(stamp, instance.slot)

    def _left_queue(self, instance: Instance, edge: Edge, stamp: int) -> None:
        if instance.tier_of(stamp) is None:
            for scope in self.scopes.of(edge.tenant):
                scope.order.drop(stamp)


def _units(edge: Edge, blocks: int) -> int:
    """Units of work, beyond the first, that taking these blocks from an edge is."""
    return blocks.bit_count() // _UNIT_BLOCKS + len(edge.part or ()) // _UNIT_HOLDERS


def block_sum(edge: Edge, blocks: int) -> int:
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
