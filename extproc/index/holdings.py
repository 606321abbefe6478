"""What every instance holds and in which order it was used: the rules of docs/index.md."""

from collections import Counter

from extproc.index.cover import ones
from extproc.index.facts import Dropped, Expired, Fact, Held, Source, Tier
from extproc.index.instance import TIERS, Instance
from extproc.index.keys import common_prefix, key_sum, reverse, same_keys
from extproc.index.roster import Roster
from extproc.index.scope import Scopes
from extproc.index.snapshot import Cut
from extproc.index.tree import HELD_CPU, MAX_EDGE, SURE_GPU, Edge, Tree, alone
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, PackedKeys

_SLICE = 200
"""Steps of bulk work that one call does at most; a step takes up to 10 µs."""

_JOIN_OTHERS = 4
"""An instance appends to an edge in place where so many others at most hold all of it: they become
partial holders, one number each."""

_EXPECTED = (Source.PICK, Source.ANSWER)
"""Who asserts a whole chain, none of it confirmed."""

_PLANES = tuple(
    tuple((tier,) if source in _EXPECTED else (tier, tier + TIERS) for tier in Tier)
    for source in Source
)
"""The planes that a fact marks, by source and tier."""


class Holdings:
    """Files what is held, drops what is not any more, and keeps the limits.

    now: position in the log of the fact that is being folded. rest: what is left of a fact that was
    too much for one slice, itself a fact; who folds it next goes on with it before anything else.
    on_cpu: whether anything ever was on the slower tier. cut: the snapshot that is being taken.
    evicted, refused: counters by reason.
    """

    def __init__(self, tree: Tree, roster: Roster, scopes: Scopes) -> None:
        self.tree = tree
        self._roster = roster
        self._scopes = scopes
        self.now = 0
        self.rest: Fact | None = None
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
                    upto = len(edge.keys) // KEY_BYTES
                    break
                if child.parent is not edge:
                    self.refused["conflict"] += 1
                    break
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
        limit = instance.limits[tier]
        done = limit is None or instance.counts[tier] <= limit or self.evict(instance, tier)
        if not (done and (not self._scopes.any or self._keep_bounds(fact.tenant))):
            self.rest = Held(instance.name, tier, NO_BLOCK, PackedKeys(b""), source, fact.tenant)

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
                instance.sums[plane] += block_sum(edge, new)
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
        bit, tree = instance.bit, self.tree
        instance.add_sums(planes, keys)
        added = len(keys) // KEY_BYTES
        if (
            edge is not None
            and (edge.more is None or not edge.more.kids)
            and len(edge.keys) < MAX_EDGE * KEY_BYTES
            and (edge.full == bit or (edge.full & ~bit).bit_count() <= _JOIN_OTHERS)
        ):
            if self.cut is not None:
                self.cut.save(edge)
            room = MAX_EDGE * KEY_BYTES - len(edge.keys)
            tree.extend(edge, keys[:room], instance.slot, bit, planes)
            keys = keys[room:]
        tenant = edge.tenant if edge is not None else tenant
        while keys:
            edge = tree.add(edge, keys[: MAX_EDGE * KEY_BYTES], tenant)
            for plane in planes:
                if plane == SURE_GPU:
                    edge.sure = alone(bit)
                else:
                    edge.own_plane(plane).full = bit
            keys = keys[MAX_EDGE * KEY_BYTES :]
        assert edge is not None
        instance.counts[planes[0]] += added
        if self._scopes.any:
            self.count_scopes(instance, edge, added)
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
                    if known and self._scopes.any:
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
        if tail is not None and self._scopes.any:
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
            if self._scopes.any:
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
        slot, size = instance.slot, edge.size
        if self.cut is not None:
            self.cut.save_path(edge)  # the queue's entry may go to an edge above
        total = block_sum(edge, gone)
        for plane in (tier, tier + TIERS):
            had = edge.blocks(plane, slot)
            lost = had & gone
            if lost:
                edge.own_plane(plane).put(slot, had ^ lost, size)
                instance.sums[plane] -= total if lost == gone else block_sum(edge, lost)
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

    def evict(self, instance: Instance, tier: Tier) -> bool:
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
        self.evicted[reason] += count
        self._unset(instance, tier, edge, blocks)

    def drop(self, instance: Instance, fact: Dropped) -> None:
        """Take these blocks from the instance. Neighbours go together, others cost 10 µs each."""
        at = 0
        for _ in range(_SLICE):
            edge, wanted, at = self._next_run(fact.keys, at)
            if edge is None:
                return
            gone = wanted & edge.blocks(fact.tier, instance.slot)
            if gone:
                self._unset(instance, fact.tier, edge, gone)
        self.rest = Dropped(fact.instance, fact.tier, PackedKeys(fact.keys[at:]), fact.source)

    def expire(self, instance: Instance, fact: Expired) -> None:
        """Take the unconfirmed ones of these blocks from the instance, in every tier."""
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
        self.rest = Expired(fact.instance, PackedKeys(fact.keys[at:]))

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

    def _count(self, instance: Instance, tier: int, edge: Edge, blocks: int) -> None:
        """The instance has so many blocks more (or fewer) of this edge."""
        instance.counts[tier] += blocks
        if self._scopes.any:
            self.count_scopes(instance, edge, blocks)

    def count_scopes(self, instance: Instance, edge: Edge, blocks: int) -> None:
        """`_count` for the bounds."""
        for scope in self._scopes.of(edge.tenant):
            instance.scopes[scope] = instance.scopes.get(scope, 0) + blocks
            if not instance.scopes[scope]:
                del instance.scopes[scope]
            scope.held += blocks

    def queued(self, instance: Instance, edge: Edge, stamp: int) -> None:
        """The instance has an entry of this stamp, the newest, in one of its orders."""
        for scope in self._scopes.of(edge.tenant):
            scope.order.put(stamp, instance.slot)

    def _left_queue(self, instance: Instance, edge: Edge, stamp: int) -> None:
        if instance.tier_of(stamp) is None:
            for scope in self._scopes.of(edge.tenant):
                scope.order.drop(stamp)

    def _keep_bounds(self, tenant: str) -> bool:
        """Drop what was touched longest ago, whoever holds it; False: a slice is not enough."""
        for scope in self._scopes.of(tenant):
            steps = _SLICE
            while scope.held > scope.limit:
                if not steps:
                    return False
                steps -= 1
                stamp = scope.order.oldest()
                instance = self._roster.slots[scope.order[stamp]]
                tier = instance.tier_of(stamp) if instance is not None else None
                if instance is None or tier is None:  # who was touched then has gone
                    scope.order.drop(stamp)
                else:
                    excess = scope.held - scope.limit
                    self._evict_oldest(instance, tier, stamp, excess, scope.reason)
        return True


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
