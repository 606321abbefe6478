"""Records → facts: what counts, and what every reader leaves out alike."""

from collections import OrderedDict

from extproc.index import Capacity, Fact, Joined, Left, Tier
from extproc.log.etcd import fold as module
from extproc.log.etcd.fold import Fold
from extproc.log.etcd.keys import place
from extproc.log.etcd.outbox import Outbox
from extproc.log.records import MAX_BLOCK_SIZE, MAX_BLOCKS, RECORD_VERSION, Signer, encode, seal
from tests.index.chains import A, B, held

SIGNER = Signer(b"secret")
OWN, OTHER = 1, 2


def reader() -> tuple[Fold, Outbox]:
    outbox = Outbox(OWN, 1 << 20)
    return Fold(SIGNER, outbox), outbox


def record(writer: int, seq: int, *facts: Fact) -> tuple[bytes, bytes]:
    name = place(writer, seq)
    return name, seal(SIGNER, name, encode(facts))


def test_facts_come_in_the_order_of_records_and_a_writers_place_is_remembered() -> None:
    fold, _ = reader()
    assert fold.take(*record(OTHER, 1, Joined(A, 16), Left(A)), 5, True)[0] == (
        Joined(A, 16),
        Left(A),
    )
    assert fold.take(*record(3, 1, Left(B)), 6, True)[0] == (Left(B),)
    fold.take(*record(OTHER, 2, Left(B)), 7, True)
    assert (fold.revision, list(fold.writers.items())) == (7, [(3, 1), (OTHER, 2)])


def test_a_record_that_was_written_again_after_it_was_trimmed_counts_once() -> None:
    fold, _ = reader()
    fold.take(*record(OTHER, 1, Left(A)), 5, True)
    fold.take(*record(OTHER, 2, Left(A)), 6, True)
    assert fold.take(*record(OTHER, 1, Left(A)), 9, True)[0] == ()
    assert fold.rejected == {"repeated": 1}
    assert (fold.revision, fold.writers) == (9, {OTHER: 2})
    fold.start(9, OrderedDict({OTHER: 2}))
    assert fold.take(*record(OTHER, 2, Left(A)), 10, True)[0] == ()


def test_what_is_written_over_a_record_does_not_count() -> None:
    fold, _ = reader()
    assert fold.take(*record(OTHER, 1, Left(A)), 5, False)[0] == ()
    assert (fold.rejected, fold.writers) == ({"rewritten": 1}, {})


def test_what_is_written_over_a_record_moves_nothing() -> None:
    fold, _ = reader()
    fold.take(*record(OTHER, 1, Left(A)), 5, True)
    fold.take(*record(OTHER, 2, Left(A)), 6, True)
    fold.take(*record(OTHER, 1, Left(B)), 5, False)
    assert fold.revision == 6


def test_what_others_leave_out_of_a_record_its_writer_leaves_out_too() -> None:
    """An engine may report a cache that no machine has."""
    fold, outbox = reader()
    odd: list[Fact] = [
        Joined(A, MAX_BLOCK_SIZE + 1),
        Capacity(A, Tier.GPU, MAX_BLOCKS + 1),
        Joined(B, 16),
    ]
    outbox.append(odd, 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    other = Fold(SIGNER, Outbox(OTHER, 1 << 20))
    for each in (fold, other):
        facts, _ = each.take(place(OWN, batch.seq), batch.value, 5, True)
        assert (facts, each.skipped) == ((Joined(B, 16),), 2)


def test_own_records_settle_and_are_taken_as_they_were_appended() -> None:
    fold, outbox = reader()
    facts = (Joined(A, 16), held(A, "xyz"))
    ticket = outbox.append(facts, 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    taken, own = fold.take(place(OWN, batch.seq), batch.value, 5, True)
    assert own is batch
    assert taken is batch.facts
    assert (outbox.settled, fold.writers) == (ticket, {OWN: 1})


def test_an_own_record_that_is_not_as_it_was_written_is_left_out_and_over() -> None:
    fold, outbox = reader()
    ticket = outbox.append([Left(A)], 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    assert fold.take(place(OWN, batch.seq), batch.value[:-1], 5, True)[0] == ()
    assert fold.rejected.total() == 1
    assert outbox.settled == ticket


def test_own_records_that_a_snapshot_has_are_over() -> None:
    fold, outbox = reader()
    ticket = outbox.append([Left(A)], 0.0)
    outbox.next(SIGNER, RECORD_VERSION)
    fold.start(7, OrderedDict({OWN: 1}))
    assert (outbox.settled, outbox.idle) == (ticket, True)


def test_only_so_many_writers_are_remembered_the_silent_ones_go() -> None:
    fold, _ = reader()
    fold.take(*record(1000, 1, Left(A)), 1, True)
    fold.take(*record(1001, 1, Left(A)), 2, True)
    fold.take(*record(1000, 2, Left(A)), 3, True)
    for number in range(module.MAX_WRITERS - 1):
        fold.take(*record(2000 + number, 1, Left(A)), 4 + number, True)
    assert len(fold.writers) == module.MAX_WRITERS
    assert 1000 in fold.writers
    assert 1001 not in fold.writers
