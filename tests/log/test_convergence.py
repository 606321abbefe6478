"""Whatever happens to replicas, they are the same once they have read as far.

The etcd of this test is a list: records with their revisions, a snapshot, a trimmed end. Real etcd:
tests/etcd.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.index import (
    Bounds,
    Capacity,
    Cleared,
    Dropped,
    Fact,
    Joined,
    Left,
    PrefixIndex,
    Source,
    Tier,
)
from extproc.log import IndexSnapshots
from extproc.log.etcd.fold import Fold
from extproc.log.etcd.keys import place
from extproc.log.etcd.outbox import Batch, Outbox
from extproc.log.etcd.pointers import point, read_pointer, whole
from extproc.log.records import RECORD_VERSION, Signer
from extproc.terms import InstanceId
from tests.index.chains import held, packed

SECRET = b"secret"
SIGNER = Signer(SECRET)
NAMES = [InstanceId(name) for name in "abc"]
BOUNDS = Bounds(24 * 60, None)


@dataclass
class Etcd:
    """Keys with their revisions. history: every change there ever was, in order."""

    revision: int = 0
    records: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    history: list[tuple[int, bytes, bytes, bool]] = field(default_factory=list)
    pointer: bytes | None = None
    pieces: list[bytes] = field(default_factory=list)

    def create(self, name: bytes, value: bytes) -> None:
        if name not in self.records:
            self.put(name, value)

    def put(self, name: bytes, value: bytes) -> None:
        self.revision += 1
        first = name not in self.records
        created = self.revision if first else self.records[name][0]
        self.records[name] = (created, value)
        self.history.append((self.revision, name, value, first))


class Replica:
    """The pure parts of one, wired as extproc/log/etcd wires them."""

    def __init__(self, etcd: Etcd, writer: int) -> None:
        self.etcd = etcd
        self.outbox = Outbox(writer, 1 << 20)
        self.fold = Fold(SIGNER, self.outbox)
        self.index = PrefixIndex(BOUNDS)
        self.snapshots = IndexSnapshots("p", self.index, lambda: SECRET)
        self.read_to = 0
        self.load()

    def load(self) -> None:
        """From the snapshot and the log after it, as a new replica or one that was left behind."""
        start, writers = 0, OrderedDict[int, int]()
        self.index.reset()
        if self.etcd.pointer is not None:
            pointer = read_pointer(self.etcd.pointer, SIGNER)
            assert whole(pointer, self.etcd.pieces, SIGNER)
            for _ in self.snapshots.load(self.etcd.pieces):
                pass
            start, writers = pointer.revision, pointer.writers
        self.fold.start(start, writers)
        rest = sorted((at, name, value) for name, (at, value) in self.etcd.records.items())
        for at, name, value in rest:
            if at > start:
                self.take(name, value, at, True)
        self.read_to = self.etcd.revision

    def take(self, name: bytes, value: bytes, revision: int, first: bool) -> None:
        for fact in self.fold.take(name, value, revision, first)[0]:
            self.index.apply(fact)

    def follow(self, changes: int) -> None:
        behind = [change for change in self.etcd.history if change[0] > self.read_to][:changes]
        for revision, name, value, first in behind:
            self.take(name, value, revision, first)
            self.read_to = revision

    def write(self) -> Batch | None:
        batch = self.outbox.next(SIGNER, RECORD_VERSION)
        if batch is not None:
            self.etcd.create(place(self.outbox.writer, batch.seq), batch.value)
        return batch

    def snapshot(self) -> None:
        pieces: list[bytes] = []
        revision, writers = 0, OrderedDict[int, int]()
        for piece in self.snapshots.save():
            if piece and not pieces:
                revision, writers = self.fold.revision, self.fold.writers.copy()
            pieces += [piece] if piece else []
        before = read_pointer(self.etcd.pointer, SIGNER).revision if self.etcd.pointer else 0
        if revision < before:
            return  # a leader has followed the pointer, so it is never behind it
        self.etcd.pieces = pieces
        self.etcd.pointer = point(revision, self.outbox.writer, writers, pieces, SIGNER)
        self.etcd.records = {
            name: (at, value) for name, (at, value) in self.etcd.records.items() if at > revision
        }

    @property
    def state(self) -> tuple[int, dict[int, int]]:
        while self.index.backlog:
            self.index.step()
        return self.index.digest, dict(self.fold.writers)


facts = st.one_of(
    st.builds(
        lambda name, prompt, after, source: held(
            name, prompt, min(after, len(prompt)), source=source
        ),
        st.sampled_from(NAMES),
        st.text("xy", min_size=1, max_size=8),
        st.integers(0, 4),
        st.sampled_from([Source.PICK, Source.EVENT]),
    ),
    st.builds(
        lambda name, prompt, after: Dropped(name, Tier.GPU, packed(prompt, after), Source.EVENT),
        st.sampled_from(NAMES),
        st.text("xy", min_size=1, max_size=8),
        st.integers(0, 4),
    ),
    st.builds(Cleared, st.sampled_from(NAMES), st.just(Source.EVENT)),
    st.builds(Joined, st.sampled_from(NAMES), st.just(16), st.sampled_from(["", "e:1"])),
    st.builds(Capacity, st.sampled_from(NAMES), st.just(Tier.GPU), st.integers(1, 30)),
    st.builds(Left, st.sampled_from(NAMES)),
)


class Replicas(RuleBasedStateMachine):
    """Three replicas and what can happen to them."""

    @initialize()
    def start(self) -> None:
        self.etcd = Etcd()
        self.started = 3
        self.replicas = [Replica(self.etcd, number + 1) for number in range(3)]
        self.replicas[0].outbox.append([Joined(name, 16) for name in NAMES], 0.0)

    which = st.integers(0, 2)

    @rule(which=which, said=st.lists(facts, max_size=5))
    def append(self, which: int, said: list[Fact]) -> None:
        self.replicas[which].outbox.append(said, 0.0)

    @rule(which=which, answered=st.booleans())
    def write(self, which: int, answered: bool) -> None:
        """With an answer that is lost the same record is written again."""
        batch = self.replicas[which].write()
        if batch is not None and answered:
            self.replicas[which].outbox.written(batch)

    @rule(which=which, changes=st.integers(1, 20))
    def follow(self, which: int, changes: int) -> None:
        self.replicas[which].follow(changes)

    @rule(which=which)
    def restart(self, which: int) -> None:
        """Killed, with all that it had not written."""
        self.started += 1
        self.replicas[which] = Replica(self.etcd, self.started)

    @rule(which=which)
    def is_left_behind_by_a_compaction(self, which: int) -> None:
        self.replicas[which].load()

    @rule(which=which)
    def snapshot(self, which: int) -> None:
        self.replicas[which].snapshot()

    @rule(which=which, cut=st.integers(1, 40), at=st.integers(0, 200))
    def somebody_writes_a_damaged_record(self, which: int, cut: int, at: int) -> None:
        if self.etcd.history:
            _, name, value, _ = self.etcd.history[at % len(self.etcd.history)]
            self.etcd.create(name[:-1] + b"f", value[:-cut])
            self.etcd.create(name.replace(b"/", b"-"), value)

    @invariant()
    def those_that_have_read_as_far_are_the_same(self) -> None:
        states: dict[int, tuple[int, dict[int, int]]] = {}
        for replica in getattr(self, "replicas", ()):
            assert states.setdefault(replica.read_to, replica.state) == replica.state

    def teardown(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for replica in self.replicas:
            ticket = replica.outbox.append([], 0.0)
            while (batch := replica.write()) is not None:
                replica.outbox.written(batch)
            replica.follow(1 << 30)
            assert replica.outbox.settled == ticket
        for replica in self.replicas:
            replica.follow(1 << 30)
        everything = Replica(Etcd(), 999)
        for revision, name, value, first in self.etcd.history:
            everything.take(name, value, revision, first)
        late = Replica(self.etcd, 1000)
        for replica in [*self.replicas, late]:
            assert replica.state == everything.state


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
