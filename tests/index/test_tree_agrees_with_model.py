"""Long random histories: the tree and the model that is plain to see as right must never differ."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import msgpack

from extproc.index import (
    Bounds,
    Capacity,
    Chunk,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
    holdings,
    loading,
    order,
    prefix,
    snapshot,
    table,
    tree,
)
from extproc.index.snapshot import CHUNK_BYTES
from extproc.terms import InstanceId, PackedKeys
from tests.index.chains import held, keys, packed
from tests.index.model import BLOCK_BYTES, Model

instances = st.sampled_from([InstanceId(name) for name in "abcd"])
tiers = st.sampled_from([Tier.GPU, Tier.GPU, Tier.CPU])
sources = st.sampled_from(Source)
letters = st.text("xyz", min_size=1, max_size=6)


def tenant_of(prompt: str) -> str:
    """Some prompts are of a tenant."""
    return {"x": "one", "y": "two"}.get(prompt[0], "")


class Histories(RuleBasedStateMachine):
    prompts = Bundle("prompts")
    bounds = Bounds()

    def __init__(self) -> None:
        super().__init__()
        self.index, self.model = PrefixIndex(self.bounds), Model(self.bounds)
        self.log: list[Fact] = []
        self.asked: set[str] = set()
        self.saving: Iterator[Chunk] | None = None
        self.pieces: list[Chunk] = []
        self.since: list[Fact] = []

    def tell(self, fact: Fact) -> None:
        self.log.append(fact)
        self.since.append(fact)
        self.index.apply(fact)
        self.model.apply(fact)
        while self.index.backlog:
            self.index.step()

    @rule(target=prompts, prompt=letters)
    def first_turn(self, prompt: str) -> str:
        self.asked.add(prompt)
        return prompt

    @rule(target=prompts, prompt=prompts, turn=letters)
    def next_turn(self, prompt: str, turn: str) -> str:
        self.asked.add(prompt + turn)
        return prompt + turn

    @initialize(limits=st.lists(st.none() | st.integers(2, 12), min_size=3, max_size=3))
    def join_all(self, limits: list[int | None]) -> None:
        for name, limit in zip("abc", limits, strict=True):
            self.tell(Joined(InstanceId(name), 16))
            if limit is not None:
                self.tell(Capacity(InstanceId(name), Tier.GPU, limit))

    @rule(instance=instances, prompt=prompts)
    def pick(self, instance: InstanceId, prompt: str) -> None:
        known = self.known(instance, prompt)
        self.tell(held(instance, prompt, known, tenant=tenant_of(prompt)))

    @rule(instance=instances, prompt=prompts)
    def pick_written_in_full(self, instance: InstanceId, prompt: str) -> None:
        self.tell(held(instance, prompt, tenant=tenant_of(prompt)))

    @rule(instance=instances, prompt=prompts, after=st.integers(0, 12), tier=tiers, source=sources)
    def hold(
        self, instance: InstanceId, prompt: str, after: int, tier: Tier, source: Source
    ) -> None:
        # An engine does not know whose its blocks are.
        tenant = "" if source is Source.EVENT else tenant_of(prompt)
        self.tell(held(instance, prompt, min(after, len(prompt)), tier, source, tenant))

    @rule(instance=instances, prompt=prompts, tier=tiers, data=st.data())
    def drop(self, instance: InstanceId, prompt: str, tier: Tier, data: st.DataObject) -> None:
        self.tell(Dropped(instance, tier, self.some(prompt, data), Source.EVENT))

    @rule(instance=instances, prompt=prompts, data=st.data())
    def expire(self, instance: InstanceId, prompt: str, data: st.DataObject) -> None:
        self.tell(Expired(instance, self.some(prompt, data)))

    @rule(
        instance=instances,
        what=st.sampled_from([Cleared, Left, Joined, Capacity]),
        tier=tiers,
        limit=st.integers(0, 12),
    )
    def change(self, instance: InstanceId, what: type[Fact], tier: Tier, limit: int) -> None:
        if what is Cleared:
            self.tell(Cleared(instance, Source.EVENT))
        elif what is Left:
            self.tell(Left(instance))
        elif what is Joined:
            self.tell(Joined(instance, 16 if limit else 32, "10.0.0.1:80" if limit > 6 else ""))
        else:
            self.tell(Capacity(instance, tier, limit))

    def known(self, instance: InstanceId, prompt: str) -> int:
        found = self.index.match(packed(prompt)).get(instance)
        return found.gpu if found else 0

    @staticmethod
    def some(prompt: str, data: st.DataObject) -> PackedKeys:
        chosen = data.draw(st.lists(st.sampled_from(keys(prompt)), max_size=4))
        return PackedKeys(b"".join(key.to_bytes(8, "little") for key in chosen))

    @invariant()
    def same_match(self) -> None:
        for prompt in self.asked:
            assert self.index.match(packed(prompt)) == self.model.match(packed(prompt)), prompt

    @invariant()
    def same_counts_within_capacity(self) -> None:
        for name, instance in self.model.instances.items():
            count = sum(len(held) for held in instance.held.values())
            assert self.index.held_blocks(InstanceId(name)) == count
        assert sum(self.index.stats().refused.values()) == self.model.refused

    @invariant()
    def same_digest(self) -> None:
        assert self.index.digest == self.model.digest

    @rule()
    def restart_from_a_snapshot(self) -> None:
        if self.saving is None:
            self.index = self.loaded(list(self.index.snapshot()))

    @precondition(lambda self: self.saving is None)
    @rule()
    def begin_a_snapshot(self) -> None:
        self.saving, self.since = self.index.snapshot(), []
        self.pieces = [next(self.saving)]

    @precondition(lambda self: self.saving is not None)
    @rule(pieces=st.integers(1, 3))
    def go_on_with_the_snapshot(self, pieces: int) -> None:
        assert self.saving is not None
        self.pieces += islice(self.saving, pieces)

    @precondition(lambda self: self.saving is not None)
    @rule()
    def finish_the_snapshot(self) -> None:
        """It shows the moment of its beginning, and what follows does the same to it."""
        assert self.saving is not None
        self.pieces += self.saving
        self.saving = None
        again = self.loaded(self.pieces)
        for fact in self.since:
            again.apply(fact)
        while again.step():
            pass
        while self.index.step():
            pass
        assert again.digest == self.index.digest
        assert again.stats() == replace(
            self.index.stats(), edges=again.stats().edges, table_bytes=again.stats().table_bytes
        )
        self.index = again

    def loaded(self, chunks: list[Chunk]) -> PrefixIndex:
        index = PrefixIndex(self.bounds)
        index.apply(Joined(InstanceId("before"), 16))
        index.apply(held(InstanceId("before"), "xyz"))
        encoded = [msgpack.encode(chunk) for chunk in chunks]
        assert max(map(len, encoded)) <= CHUNK_BYTES
        deque(index.load(msgpack.decode(piece, type=Chunk) for piece in encoded), maxlen=0)
        return index

    @rule()
    def idle(self) -> None:
        while self.index.step():
            pass

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        needed = {
            block
            for instance in self.model.instances.values()
            for blocks in instance.held.values()
            for key in blocks
            for block in self.model.chain(key)
        }
        assert self.index.stats().blocks >= len(needed)
        if self.saving is None and not self.index.step():
            assert self.index.stats().blocks == len(needed)

    def teardown(self) -> None:
        again = PrefixIndex(self.bounds)
        for fact in self.log:  # without a step in between: facts queue behind bulk work
            again.apply(fact)
        while again.step():
            pass
        assert again.digest == self.index.digest


class TinyHistories(Histories):
    """The same with the smallest edges, slices and batches, and with bounds."""

    bounds = Bounds(pool_bytes=20 * BLOCK_BYTES, tenant_bytes=8 * BLOCK_BYTES)

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in (holdings, tree):
            self.patch.setattr(module, "MAX_EDGE", 3)
        self.patch.setattr(holdings, "_SLICE", 1)
        self.patch.setattr(prefix, "_SWEEP", 16)
        self.patch.setattr(snapshot, "_LOOKS", 2)
        self.patch.setattr(snapshot, "CHUNK_EDGES", 2)
        self.patch.setattr(loading, "_SLICE", 1)
        self.patch.setattr(loading, "_SORTED", 2)
        self.patch.setattr(loading, "_BUCKET", 2)
        self.patch.setattr(order, "_SHARD", 4)
        self.patch.setattr(holdings, "_JOIN_OTHERS", 1)
        self.patch.setattr(table, "BATCH_KEYS", 4)
        self.patch.setattr(table, "_SMALLEST", 16)
        super().__init__()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patch.undo()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestTinyHistories = TinyHistories.TestCase
TestTinyHistories.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", [Histories, TinyHistories])
def test_many_more_and_longer_histories(machine: type[Histories]) -> None:
    long = settings(max_examples=800, stateful_step_count=80, deadline=None)
    run_state_machine_as_test(machine, settings=long)
