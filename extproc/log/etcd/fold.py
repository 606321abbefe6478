"""Records → facts, in log order, the same on every replica. Sans-IO."""

from collections import Counter, OrderedDict

from extproc.index import Fact
from extproc.log.etcd.keys import read_place
from extproc.log.etcd.outbox import Batch, Outbox
from extproc.log.records import BadRecord, Signer, decode, unseal

MAX_WRITERS = 1024
"""Writers whose last record is remembered; beyond it the one that was silent longest is forgotten.
A writer is a replica's process, and writes again within its backlog's lifetime or never."""


class Fold:
    """How far the log was read, and what was in it.

    revision: at which the last record was created. writers: writer → seq of its last record, in
    the order in which they were last heard of; with the revision, all that a snapshot must carry
    besides the index.
    rejected: records that were left out, by reason: `place`, `rewritten`, `checksum`, `malformed`,
    `repeated` (written again after it was trimmed). skipped: facts of good records that were left
    out, of a later version or out of bounds. All of it depends on the log alone.
    """

    def __init__(self, signer: Signer, own: Outbox) -> None:
        self._signer = signer
        self._own = own
        self.revision = 0
        self.writers: OrderedDict[int, int] = OrderedDict()
        self.rejected: Counter[str] = Counter()
        self.skipped = 0

    def start(self, revision: int, writers: "OrderedDict[int, int] | None" = None) -> None:
        """Go on after a snapshot (revision 0: from nothing)."""
        self.revision = revision
        self.writers = OrderedDict(writers or {})
        self.rejected.clear()
        self.skipped = 0
        self._own.returned(self.writers.get(self._own.writer, 0))

    def take(
        self, name: bytes, value: bytes, revision: int, first: bool
    ) -> tuple[tuple[Fact, ...], Batch | None]:
        """The next record's facts, none where it is left out; and the batch, where it is ours.

        name: its key after the log's prefix. revision: at which the key was created. first: whether
        its value is still the first; nothing that is written over a record counts.
        """
        # One written over comes again, at a revision that who reads the log later finds nowhere.
        self.revision = max(self.revision, revision)
        place = read_place(name)
        if place is None:
            self.rejected["place"] += 1
            return (), None
        if not first:
            self.rejected["rewritten"] += 1
            return (), None
        writer, seq = place
        if writer != self._own.writer:
            return self._read(writer, seq, name, value), None
        known = self._own.known(seq, value)
        if known is None:
            facts = self._read(writer, seq, name, value)
        else:
            facts = known.facts
            self.skipped += known.skipped
            self._heard(writer, seq)
        return facts, self._own.returned(seq)

    def _read(self, writer: int, seq: int, name: bytes, value: bytes) -> tuple[Fact, ...]:
        try:
            batch = decode(unseal(self._signer, name, value))
        except BadRecord as bad:
            self.rejected[bad.reason] += 1
            return ()
        if seq <= self.writers.get(writer, 0):
            self.rejected["repeated"] += 1
            return ()
        self._heard(writer, seq)
        self.skipped += batch.skipped
        return batch.facts

    def _heard(self, writer: int, seq: int) -> None:
        self.writers[writer] = seq
        self.writers.move_to_end(writer)
        if len(self.writers) > MAX_WRITERS:
            self.writers.popitem(last=False)
