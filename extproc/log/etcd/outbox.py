"""A replica's own facts on their way into the log and back. Sans-IO.

    append ─▶ waiting ─▶ a batch, sealed ─▶ written ─▶ returned by the log
                 │ (beyond the bound: the oldest are left out and counted)

One batch is written at a time and again until etcd has it, so a writer's records are in its order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.index import Fact
from extproc.log.etcd.keys import place
from extproc.log.records import MAX_RECORD_BYTES, Signer, decode, encode, pieces, seal, size


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts that are written together, at one place of the log, as `value`.

    first: the ticket of its first fact. since: when that was appended. facts: as everybody reads
    them. skipped: those that everybody leaves out.
    """

    seq: int
    first: int
    since: float
    facts: tuple[Fact, ...]
    skipped: int
    value: bytes


class Outbox:
    """One writer's facts of one pool.

    writer: random, 64 bits, another one at every start of a process. max_bytes: of facts that wait.
    dropped: facts that were left out for want of room. waiting_bytes: of facts that wait.
    unreturned_bytes: of records that were begun and have not come back. acknowledged: seq of the
    last record that etcd is known to have. Times are the caller's, in seconds.
    """

    def __init__(self, writer: int, max_bytes: int) -> None:
        self.writer = writer
        self.dropped = 0
        self.waiting_bytes = 0
        self.unreturned_bytes = 0
        self.acknowledged = 0
        self._max_bytes = max_bytes
        self._tickets = 0
        self._seq = 0
        self._waiting: deque[tuple[int, float, int, Fact]] = deque()
        self._writing: Batch | None = None
        self._out: deque[Batch] = deque()

    def append(self, facts: Sequence[Fact], now: float) -> int:
        """Take facts; returns their ticket. What is beyond the bound goes, the oldest first."""
        self._tickets += 1
        for fact in facts:
            for piece in pieces(fact):
                cost = size(piece)
                self._waiting.append((self._tickets, now, cost, piece))
                self.waiting_bytes += cost
        while self.waiting_bytes > self._max_bytes:
            self.waiting_bytes -= self._waiting.popleft()[2]
            self.dropped += 1
        return self._tickets

    @property
    def settled(self) -> int:
        """The ticket up to which everything came back or was left out."""
        if self._out:
            return self._out[0].first - 1
        return self._waiting[0][0] - 1 if self._waiting else self._tickets

    @property
    def oldest(self) -> float | None:
        """When the oldest fact that has not come back was appended; None where all have."""
        if self._out:
            return self._out[0].since
        return self._waiting[0][1] if self._waiting else None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write."""
        return not self._waiting and self._writing is None

    @property
    def ahead(self) -> bool:
        """Whether so much has not come back that writing more would only take memory."""
        return self.unreturned_bytes >= self._max_bytes

    @property
    def full(self) -> bool:
        """Whether waiting longer would not make the next record fuller."""
        return self.waiting_bytes >= MAX_RECORD_BYTES

    def next(self, signer: Signer, version: int) -> Batch | None:
        """The batch to write: the same one until it is `written`. None: there is nothing."""
        while self._writing is None and self._waiting:
            first, since, _, _ = self._waiting[0]
            room = MAX_RECORD_BYTES
            facts: list[Fact] = []
            while self._waiting and (not facts or self._waiting[0][2] <= room):
                _, _, cost, fact = self._waiting.popleft()
                room -= cost
                self.waiting_bytes -= cost
                facts.append(fact)
            try:
                data = encode(facts, version)
            except ValueError:
                # A name that is no text must not take the facts beside it along.
                writable = [fact for fact in facts if _writable(fact, version)]
                self.dropped += len(facts) - len(writable)
                if not writable:
                    continue
                facts, data = writable, encode(writable, version)
            self._seq += 1
            value = seal(signer, place(self.writer, self._seq), data)
            read = decode(data)  # not `facts`: what the others leave out, this replica does too
            self._writing = Batch(self._seq, first, since, read.facts, read.skipped, value)
            self._out.append(self._writing)
            self.unreturned_bytes += len(value)
        return self._writing

    def written(self, batch: Batch) -> None:
        """Etcd has the batch."""
        self.acknowledged = max(self.acknowledged, batch.seq)
        if self._writing is batch:
            self._writing = None

    def refused(self, batch: Batch) -> None:
        """Etcd will never take the batch: it is left out."""
        if self._writing is batch:
            self._writing = None
            self.dropped += len(batch.facts) + batch.skipped
            self._out.remove(batch)
            self.unreturned_bytes -= len(batch.value)

    def clear(self) -> None:
        """Leave out all that is not written: its keys mean nothing any more."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self.waiting_bytes = 0
        if self._writing is not None:
            self.refused(self._writing)

    def known(self, seq: int, value: bytes) -> Batch | None:
        """A record of ours, if it is as it was written."""
        for batch in self._out:
            if batch.seq == seq:
                return batch if batch.value == value else None
        return None

    def returned(self, seq: int) -> Batch | None:
        """The log has given back (or is past) every record of ours up to this one; the last."""
        batch: Batch | None = None
        while self._out and self._out[0].seq <= seq:
            batch = self._out.popleft()
            self.unreturned_bytes -= len(batch.value)
            if batch is self._writing:
                self._writing = None
        return batch


def _writable(fact: Fact, version: int) -> bool:
    try:
        encode([fact], version)
    except ValueError:
        return False
    return True
