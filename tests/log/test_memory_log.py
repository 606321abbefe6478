"""The embedded log keeps the promises of `extproc/log/interface.py`."""

import pytest

from extproc.index import Cleared, Fact, Joined, Left, PrefixIndex, Source
from extproc.log import FactLog, LogClosedError, MemoryLog, Record
from extproc.terms import InstanceId
from tests.index.chains import A, B, depths, held


class Notes:
    """A follower that writes down what it is given, and may answer with facts of its own."""

    def __init__(self, log: FactLog, answer: tuple[Fact, ...] = ()) -> None:
        self.records: list[Record] = []
        self.log, self.answer = log, answer

    def fold(self, record: Record) -> None:
        self.records.append(record)
        if self.answer:
            answer, self.answer = self.answer, ()
            self.log.append(answer)

    def reload(self) -> None:
        self.records.clear()


class Index:
    def __init__(self) -> None:
        self.index = PrefixIndex()

    def fold(self, record: Record) -> None:
        for fact in record.facts:
            self.index.apply(fact)

    def reload(self) -> None:
        self.index = PrefixIndex()


def test_what_is_appended_is_in_the_index_before_append_returns() -> None:
    log, follower = MemoryLog(), Index()
    log.follow(follower)
    log.append([Joined(A, 16), held(A, "xyz")])
    assert depths(follower.index, "xyz") == {"a": 3}


def test_records_keep_their_facts_together_and_count_up() -> None:
    log: FactLog = MemoryLog()
    notes = Notes(log)
    log.follow(notes)
    assert log.revision == 0
    tickets = [log.append([Joined(A, 16), Joined(B, 16)]), log.append([Left(A)])]
    assert notes.records == [
        Record(1, tickets[0], (Joined(A, 16), Joined(B, 16))),
        Record(2, tickets[1], (Left(A),)),
    ]
    assert log.revision == 2


def test_facts_appended_while_one_is_folded_come_after_it_for_every_follower() -> None:
    log = MemoryLog()
    first, second = Notes(log, answer=(Left(A),)), Notes(log)
    log.follow(first)
    log.follow(second)
    log.append([Joined(A, 16)])
    for notes in (first, second):
        assert [r.facts for r in notes.records] == [(Joined(A, 16),), (Left(A),)]


def test_a_writer_may_change_its_list_after_append() -> None:
    log = MemoryLog()
    notes = Notes(log)
    log.follow(notes)
    facts: list[Fact] = [Cleared(InstanceId("a"), Source.EVENT)]
    log.append(facts)
    facts.clear()
    assert len(notes.records[0].facts) == 1


def test_a_follower_that_would_miss_records_is_refused() -> None:
    log = MemoryLog()
    log.append([Joined(A, 16)])
    with pytest.raises(ValueError, match="before the first append"):
        log.follow(Notes(log))


async def test_a_closed_log_refuses_facts() -> None:
    log = MemoryLog()
    await log.open()
    await log.close()
    await log.close()
    with pytest.raises(LogClosedError):
        log.append([Joined(A, 16)])
