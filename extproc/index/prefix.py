"""The prefix index: facts in, cached blocks of a prompt per instance out."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from extproc.index.edge import Edge
from extproc.index.facts import (
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Held,
    Joined,
)
from extproc.index.holdings import Holdings
from extproc.index.instance import Instance
from extproc.index.loading import Loader, SnapshotError
from extproc.index.lookup import Depths, match, match_tiers
from extproc.index.roster import Roster
from extproc.index.scope import Bounds, Scopes
from extproc.index.snapshot import FOLD_VERSION, Chunk, Cut, Head, InstanceState
from extproc.index.tree import Tree
from extproc.terms import InstanceId, PackedKeys

_SWEEP = 2048
"""Edges that one slice looks at for slots that have gone."""

_SHARD = 64
"""Entries of a dict that are worth a slice of their own when it goes."""

_DIGEST_MASK = (1 << 64) - 1


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
        self._ruins: list[Tree] = []
        self._rubbish: list[dict[int, Edge] | dict[int, int]] = []
        self.tree: Tree
        """The structure, for dumps; only the index changes it."""
        tree, roster = Tree(), Roster()
        self._take_over(tree, roster, Holdings(tree, roster, Scopes(self._bounds)))

    def reset(self) -> None:
        """Forget everything, instances and counters included. Memory is given back in slices."""
        self._ruins.append(self.tree)
        for instance in self._roster.by_name.values():
            self._discard(instance)
        self._rubbish += self._holdings.scopes.shards()
        tree, roster = Tree(), Roster()
        self._take_over(tree, roster, Holdings(tree, roster, Scopes(self._bounds)))

    def _take_over(self, tree: Tree, roster: Roster, holdings: Holdings) -> None:
        self.tree = tree
        self._roster = roster
        self._holdings = holdings
        self._backlog: deque[Fact] = deque()
        self._sweeping = 0
        self._sweep_at = 0

    # What is asked

    def match(self, keys: PackedKeys) -> dict[InstanceId, Depths]:
        """Leading blocks of the prompt per instance; one that holds none is absent.

        keys: chained, root first. Never raises, never writes. O(edges on the path + log blocks +
        instances found); about 0.3 µs an edge.
        """
        if self._holdings.on_cpu:
            return match_tiers(self.tree, self._roster, keys)
        return match(self.tree, self._roster, keys)

    def held_blocks(self, instance: InstanceId) -> int:
        """Blocks that the instance holds, a block in two tiers counted twice; 0 if unknown."""
        known = self._roster.by_name.get(instance)
        return sum(known.counts) if known else 0

    @property
    def digest(self) -> int:
        """64 bits over the state: the same facts in the same order, the same digest. O(instances).

        State is who holds which block in which tier, whether that is confirmed, the order of use,
        and the instances with their block sizes and capacities. Kept up with every fact, ~2 µs an
        instance to read. Comparable where the backlog is empty, between equal `FOLD_VERSION`s.
        """
        return sum(i.digest() for i in self._roster.by_name.values()) & _DIGEST_MASK

    def instances(self) -> list[Instance]:
        """All that have joined, in that order, for dumps; only the index changes them."""
        return list(self._roster.by_name.values())

    @property
    def position(self) -> int:
        """Facts folded so far."""
        return self._holdings.now

    @property
    def backlog(self) -> int:
        """Facts that are not (wholly) folded yet."""
        return len(self._backlog) + (self._holdings.rest is not None)

    def stats(self) -> IndexStats:
        """Sizes and counters. O(instances)."""
        return IndexStats(
            blocks=self.tree.blocks,
            edges=self.tree.edges,
            instances=len(self._roster.by_name),
            held=sum(sum(i.counts) for i in self._roster.by_name.values()),
            evicted=dict(self._holdings.evicted),
            refused=dict(self._holdings.refused),
            backlog=self.backlog,
            table_bytes=self.tree.table.nbytes,
        )

    # What is saved

    def snapshot(self) -> Iterator[Chunk]:
        """The state at the moment of the first `next`, in pieces; facts go on in between.

        Each piece is a slice of work (≤ 2 ms). Close the iterator to give up. Raises ValueError at
        once where the backlog is not empty or another snapshot is being taken, SnapshotError where
        the index was reset or loaded meanwhile.
        """
        holdings, tree, roster = self._holdings, self.tree, self._roster
        if self.backlog or holdings.cut is not None:
            raise ValueError("no snapshot beside a backlog or another snapshot")
        head = Head(
            version=FOLD_VERSION,
            position=holdings.now,
            digest=self.digest,
            blocks=tree.blocks,
            edges=tree.edges,
            tails=sum(len(tails) for i in self.instances() for tails in i.tails),
            instances=tuple(
                InstanceState(i.name, i.block_size, i.endpoint, tuple(i.limits))
                for i in self.instances()
            ),
            evicted=dict(holdings.evicted),
            refused=dict(holdings.refused),
        )
        holdings.cut = Cut(tree, roster, head)
        tree.store.keep_ids(True)
        try:
            for chunk in holdings.cut.chunks():
                yield chunk
                if self.tree is not tree:
                    raise SnapshotError("the index was reset while it was saved")
        finally:
            holdings.cut = None
            tree.store.keep_ids(False)

    def load(self, chunks: Iterable[Chunk]) -> Iterator[int]:
        """Become what a snapshot has; a slice (≤ 2 ms) between any two results.

        Pulls one piece a slice, and gives how many blocks are loaded so far. The index answers, and
        takes facts, as it was until the last slice; then it is what the snapshot has and nothing
        else. Bounds are its own. Raises SnapshotError where pieces are missing, damaged or of
        another version: then it stays as it was.
        """
        pieces = iter(chunks)
        loader = Loader(next(pieces, None), Scopes(self._bounds))
        yield from loader.slices(pieces)
        self.reset()
        self._take_over(loader.tree, loader.roster, loader.holdings)

    # What is told

    def apply(self, fact: Fact) -> None:
        """Fold one fact, or queue it behind bulk work. Facts come in log order; never raises."""
        holdings, tree = self._holdings, self.tree
        if holdings.rest is not None or self._backlog:
            self._backlog.append(fact)
            self.step()
            if holdings.rest is None and self._backlog:
                self.step()  # a second one, or what has queued up would never get shorter
            return
        holdings.now += 1
        if type(fact) is Held and (instance := self._roster.by_name.get(fact.instance)):
            holdings.hold(instance, fact)
        else:
            self._fold(fact)
        if tree.ghosts or self._rubbish or self._ruins:
            self._tidy(_SWEEP // 16)
        if tree.table.due:
            tree.work()

    def step(self) -> bool:
        """Do one slice (≤ 2 ms) of what is left: the backlog first, then upkeep. False: all done.

        For the idle moments of who owns the index; `apply` does enough of it to keep up.
        """
        holdings = self._holdings
        if holdings.rest is not None:
            holdings.go_on()
        elif self._backlog:
            holdings.now += 1
            self._fold(self._backlog.popleft())
        elif not self._tidy(_SWEEP):
            return self.tree.work()
        return True

    def _tidy(self, looks: int) -> bool:
        """One slice of giving back what is out of use; False: there is nothing to do now."""
        if self._holdings.cut is not None:
            return False  # it needs all of it as it is
        if self._rubbish:
            self._rubbish.pop()  # first, because what nothing else refers to would go with it
        elif self._ruins:
            if not self._ruins[-1].dismantle(looks // 8):
                self._ruins.pop()
        elif self.tree.ghosts:
            self._sweep(looks)
        else:
            return False
        return True

    def _fold(self, fact: Fact) -> None:
        holdings = self._holdings
        instance = self._roster.by_name.get(fact.instance)
        if type(fact) is Joined:
            if instance is not None:
                if (instance.block_size, instance.endpoint) == (fact.block_size, fact.endpoint):
                    return
                self._remove(instance)
            self._roster.place(fact.instance, fact.block_size, fact.endpoint)
        elif instance is None:
            holdings.refused["unknown_instance"] += 1
        elif type(fact) is Held:
            holdings.hold(instance, fact)
        elif type(fact) is Dropped:
            holdings.drop(instance, fact)
        elif type(fact) is Expired:
            holdings.expire(instance, fact)
        elif type(fact) is Capacity:
            holdings.limit(instance, fact)
            self.tree.room = sum(limit for i in self.instances() for limit in i.limits if limit)
        else:
            self._remove(instance)
            if type(fact) is Cleared:
                again = self._roster.place(instance.name, instance.block_size, instance.endpoint)
                again.limits = instance.limits

    def _remove(self, instance: Instance) -> None:
        """It is gone for every question at once; its slot is swept out of the edges in slices."""
        self._roster.remove(instance)
        for scope, count in instance.scopes.items():
            scope.held -= count
        instance.scopes.clear()
        self._discard(instance)
        if any(instance.counts):
            self.tree.ghosts |= instance.bit
        else:
            self._roster.free(instance.bit)

    def _discard(self, instance: Instance) -> None:
        """Its queues go, the large ones in slices."""
        for tails in instance.tails:
            self._rubbish += [shard for shard in tails.shards() if len(shard) > _SHARD]
        instance.tails = []

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
            self._roster.free(ghosts)
            self._sweeping = 0
