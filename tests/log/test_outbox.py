"""Own facts on their way into the log and back: order, tickets, bounds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from extproc.index import Held, Joined, Left, Source, Tier
from extproc.log.etcd.keys import place
from extproc.log.etcd.outbox import Batch, Outbox
from extproc.log.records import (
    MAX_KEYS,
    MAX_RECORD_BYTES,
    RECORD_VERSION,
    Signer,
    decode,
    pieces,
    size,
    unseal,
)
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys
from tests.index.chains import A, B, held

SIGNER = Signer(b"secret")
WRITER = 0xABC
ROOM = 1 << 20


def taken(outbox: Outbox) -> Batch:
    """The next batch, written at once."""
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    outbox.written(batch)
    return batch


def test_what_was_appended_goes_out_together_and_in_order() -> None:
    outbox = Outbox(WRITER, ROOM)
    assert outbox.next(SIGNER, RECORD_VERSION) is None
    outbox.append([Joined(A, 16), Joined(B, 16)], 1.0)
    outbox.append([Left(A)], 2.0)
    batch = taken(outbox)
    assert (batch.seq, batch.since, batch.facts) == (
        1,
        1.0,
        (Joined(A, 16), Joined(B, 16), Left(A)),
    )
    place = b"0000000000000abc/0000000001"
    assert decode(unseal(SIGNER, place, batch.value)).facts == batch.facts
    outbox.append([Left(B)], 3.0)
    assert taken(outbox).seq == 2
    assert outbox.idle


def test_a_batch_is_the_same_until_it_is_written() -> None:
    outbox = Outbox(WRITER, ROOM)
    outbox.append([Left(A)], 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    outbox.append([Left(B)], 0.0)
    assert outbox.next(SIGNER, RECORD_VERSION) is batch
    assert not outbox.idle


def test_a_ticket_is_settled_when_all_of_it_came_back() -> None:
    outbox = Outbox(WRITER, ROOM)
    assert outbox.append([], 0.0) == outbox.settled == 1
    keys = PackedKeys(b"".join(i.to_bytes(8, "little") for i in range(1, 4 * MAX_KEYS)))
    two = outbox.append([Held(A, Tier.GPU, NO_BLOCK, keys, Source.PICK)], 5.0)
    three = outbox.append([Left(B)], 6.0)
    assert outbox.settled == two - 1
    assert outbox.oldest == 5.0
    seqs = []
    while not outbox.idle:
        seqs.append(taken(outbox).seq)
        assert outbox.settled == two - 1
    for seq in seqs[:-1]:
        outbox.returned(seq)
        assert outbox.settled < three
    outbox.returned(seqs[-1])
    assert outbox.settled == three
    assert outbox.oldest is None
    assert outbox.unreturned_bytes == 0


def test_beyond_the_bound_the_oldest_facts_go_and_are_counted() -> None:
    cost = size(held(A, "xyz"))
    outbox = Outbox(WRITER, 3 * cost)
    for number in range(10):
        outbox.append([held(A, "xyz")], float(number))
    assert outbox.waiting_bytes == 3 * cost
    assert (outbox.dropped, outbox.settled) == (7, 7)
    assert outbox.oldest == 7.0
    assert len(taken(outbox).facts) == 3


def test_a_batch_that_etcd_refuses_is_left_out() -> None:
    outbox = Outbox(WRITER, ROOM)
    outbox.append([Left(A)], 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    outbox.refused(batch)
    assert (outbox.dropped, outbox.settled, outbox.idle) == (1, 1, True)
    assert outbox.unreturned_bytes == 0
    outbox.append([Left(B)], 0.0)
    assert taken(outbox).seq == 2


def test_one_that_came_back_before_its_answer_is_not_written_again() -> None:
    outbox = Outbox(WRITER, ROOM)
    outbox.append([Left(A)], 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert batch is not None
    assert outbox.returned(batch.seq) is batch
    assert outbox.idle
    outbox.append([Left(B)], 0.0)
    following = outbox.next(SIGNER, RECORD_VERSION)
    outbox.written(batch)
    assert outbox.next(SIGNER, RECORD_VERSION) is following


def test_with_another_secret_what_waits_is_void() -> None:
    outbox = Outbox(WRITER, ROOM)
    outbox.append([Left(A)], 0.0)
    first = taken(outbox)
    outbox.append([Left(A)], 0.0)
    assert outbox.next(SIGNER, RECORD_VERSION)
    outbox.append([Left(A)], 0.0)
    outbox.clear()
    assert (outbox.dropped, outbox.idle) == (2, True)
    assert outbox.settled == 0
    outbox.returned(first.seq)
    assert outbox.settled == 3


def test_it_says_when_what_does_not_come_back_takes_too_much_memory() -> None:
    outbox = Outbox(WRITER, 100)
    outbox.append([held(A, "xyz")], 0.0)
    batch = taken(outbox)
    assert not outbox.ahead
    outbox.append([held(A, "xyz")], 0.0)
    taken(outbox)
    assert outbox.ahead
    outbox.returned(batch.seq)
    assert not outbox.ahead


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_records_are_full_and_never_too_large(lengths: list[int]) -> None:
    outbox = Outbox(WRITER, 1 << 30)
    appended = []
    for number, length in enumerate(lengths):
        keys = PackedKeys(b"".join((number + i + 1).to_bytes(8, "little") for i in range(length)))
        fact = Held(A, Tier.GPU, NO_BLOCK, keys, Source.PICK)
        outbox.append([fact], 0.0)
        appended += list(pieces(fact))
    batches = []
    while not outbox.idle:
        batches.append(taken(outbox))
    assert [fact for batch in batches for fact in batch.facts] == appended
    assert [batch.seq for batch in batches] == list(range(1, len(batches) + 1))
    for batch, following in pairwise(batches):
        used = sum(map(size, batch.facts))
        assert len(batch.value) <= MAX_RECORD_BYTES + 100
        assert used + size(following.facts[0]) > MAX_RECORD_BYTES


def test_it_knows_which_records_etcd_is_known_to_have() -> None:
    outbox = Outbox(WRITER, ROOM)
    assert outbox.acknowledged == 0
    outbox.append([Left(A)], 0.0)
    batch = outbox.next(SIGNER, RECORD_VERSION)
    assert outbox.acknowledged == 0
    assert batch is not None
    outbox.written(batch)
    assert outbox.acknowledged == 1


def test_a_fact_that_is_no_text_is_left_out_and_counted_and_takes_no_other_along() -> None:
    outbox = Outbox(1, 1 << 20)
    bad, good = Joined(InstanceId("a\ud800"), 16), Joined(InstanceId("b"), 16)
    outbox.append([bad, good], 0.0)
    batch = outbox.next(Signer(bytes(32)), RECORD_VERSION)
    assert batch is not None
    assert batch.facts == (good,)
    assert decode(unseal(Signer(bytes(32)), place(1, 1), batch.value)).facts == (good,)
    outbox.written(batch)
    outbox.returned(batch.seq)
    last = outbox.append([bad], 0.0)
    assert outbox.next(Signer(bytes(32)), RECORD_VERSION) is None
    assert (outbox.dropped, outbox.settled, outbox.idle) == (2, last, True)
