"""The embedded log keeps the promises of `extproc/log/interface.py`."""

import pytest

from extproc.index import Fact, Joined, Left, PrefixIndex
from extproc.log import FactLog, LogClosedError, MemoryLog
from tests.index.chains import A, B, depths, held


class Notes:
    """A subscriber that writes down what it is given, and may answer with facts of its own."""

    def __init__(self, log: FactLog, answer: tuple[Fact, ...] = ()) -> None:
        self.facts: list[tuple[int, Fact]] = []
        self.log, self.answer = log, answer

    def apply(self, revision: int, fact: Fact) -> None:
        self.facts.append((revision, fact))
        if self.answer:
            answer, self.answer = self.answer, ()
            self.log.append("p", answer)


def test_what_is_appended_is_in_the_index_before_append_returns() -> None:
    log, index = MemoryLog(), PrefixIndex()
    log.subscribe("p", lambda _, fact: index.apply(fact))
    log.append("p", [Joined(A, 16), held(A, "xyz")])
    assert depths(index, "xyz") == {"a": 3}


def test_pools_do_not_see_each_others_facts() -> None:
    log = MemoryLog()
    here, there = Notes(log), Notes(log)
    log.subscribe("p", here.apply)
    log.subscribe("q", there.apply)
    log.append("q", [Joined(A, 16)])
    log.append("p", [Left(A)])
    assert [fact for _, fact in here.facts] == [Left(A)]
    assert [fact for _, fact in there.facts] == [Joined(A, 16)]


def test_facts_appended_together_share_a_revision_and_revisions_rise() -> None:
    log: FactLog = MemoryLog()
    notes = Notes(log)
    log.subscribe("p", notes.apply)
    assert (log.revision("p"), log.settled("p")) == (0, 0)
    first = log.append("p", [Joined(A, 16), Joined(B, 16)])
    second = log.append("p", [Left(A)])
    assert 0 < first < second == log.settled("p")
    revisions = [revision for revision, _ in notes.facts]
    assert revisions[0] == revisions[1] < revisions[2] == log.revision("p")
    assert [fact for _, fact in notes.facts] == [Joined(A, 16), Joined(B, 16), Left(A)]


def test_facts_appended_while_one_is_folded_come_after_it_for_every_subscriber() -> None:
    log = MemoryLog()
    first, second = Notes(log, answer=(Left(A),)), Notes(log)
    log.subscribe("p", first.apply)
    log.subscribe("p", second.apply)
    log.append("p", [Joined(A, 16)])
    assert first.facts == second.facts
    assert [fact for _, fact in first.facts] == [Joined(A, 16), Left(A)]


def test_a_subscriber_that_would_miss_facts_is_refused() -> None:
    log = MemoryLog()
    log.append("p", [Joined(A, 16)])
    with pytest.raises(ValueError, match="before the first append"):
        log.subscribe("p", Notes(log).apply)


async def test_a_closed_log_refuses_facts() -> None:
    log = MemoryLog()
    await log.open()
    await log.close()
    await log.close()
    with pytest.raises(LogClosedError):
        log.append("p", [Joined(A, 16)])
