"""Messages that are missing, come twice, or come from another process."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from extproc.engines.events import Message
from extproc.index import Held, Source, Tier
from extproc.prompt import block_keys, pack_ids
from extproc.terms import NO_BLOCK
from tests.engines.events.engine import CALM, CLEARED, payload, removed, stored
from tests.engines.events.model import BLOCK, ENGINE, Told, root
from tests.engines.events.publisher import Link, Publisher

A = list(range(100, 100 + 4 * BLOCK))
B = list(range(500, 500 + 4 * BLOCK))


def test_an_engine_that_was_there_first_is_known_from_its_history() -> None:
    engine, link = Publisher(), Link()
    engine.store(A)
    engine.evict(A)
    assert link.stream.state == "down"
    link.do(link.stream.connected())
    assert link.stream.state == "catching_up"
    link.replay(engine)
    assert (link.told.depth(A), link.stream.state) == ((3, 3), "live")


def test_an_engine_that_has_said_nothing_yet_is_known_to_be_empty() -> None:
    link = Link()
    link.connect(Publisher())
    assert link.stream.live


def test_what_comes_while_the_history_is_read_is_taken_in_after_it_and_once() -> None:
    engine, link = Publisher(), Link()
    engine.store(A)
    link.do(link.stream.connected())
    link.hear(engine.store(B), engine.evict(B))
    assert link.told.depth(B) == (0, 0)
    link.replay(engine)
    assert link.told.depth(B) == (3, 3)
    link.hear(engine.history[-1], engine.history[0])
    assert (link.told.depth(B), link.stream.counts) == ((3, 3), {})


def test_a_gap_is_asked_for_and_filled() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    engine.store(A)
    link.hear(engine.store(B))
    assert not link.stream.live
    assert link.replay(engine) == 1
    assert (link.told.depth(A), link.told.depth(B)) == ((4, 4), (4, 4))
    assert (link.stream.live, link.stream.counts) == (True, {"gaps": 1})


def test_a_gap_that_the_engine_has_forgotten_clears_what_is_known() -> None:
    engine, link = Publisher(kept=2), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    for ids in (B[:BLOCK], B[: 2 * BLOCK], B[: 3 * BLOCK]):
        engine.store(ids)
    link.hear(engine.store(B))
    link.replay(engine)
    assert (link.told.depth(A), link.stream.state) == ((0, 0), "partial")
    assert link.stream.counts["history_lost"] == 1
    link.hear(engine.store(A[:BLOCK] + B))
    assert link.told.depth(A[:BLOCK] + B) == (0, 0)  # its first block was stored before
    link.hear(engine.say(CLEARED))
    assert link.stream.live


def test_without_a_replay_socket_a_gap_clears_at_once() -> None:
    engine, link = Publisher(), Link(replayable=False)
    link.do(link.stream.connected())
    link.hear(engine.store(A))
    assert link.stream.live
    engine.store(B[:BLOCK])
    link.hear(engine.store(B[BLOCK:]))
    assert (link.told.depth(A), link.told.depth(B[BLOCK:])) == ((0, 0), (3, 3))
    assert link.stream.state == "partial"


def test_without_a_replay_socket_a_connection_that_broke_clears_too() -> None:
    engine, link = Publisher(), Link(replayable=False)
    link.do(link.stream.connected())
    link.hear(engine.store(A))
    link.do(link.stream.disconnected())
    assert (link.stream.state, link.told.depth(A)) == ("down", (4, 4))
    link.do(link.stream.connected())
    assert (link.stream.state, link.told.depth(A)) == ("partial", (0, 0))


def test_an_engine_first_heard_in_the_middle_is_partly_known() -> None:
    engine, link = Publisher(), Link(replayable=False)
    link.do(link.stream.connected())
    engine.store(A)
    link.hear(engine.store(B))
    assert (link.stream.state, link.told.depth(B)) == ("partial", (4, 4))


@pytest.mark.parametrize("replayable", [True, False])
def test_a_lower_number_is_another_process_with_an_empty_cache(replayable: bool) -> None:
    engine, link = Publisher(), Link(replayable)
    link.do(link.stream.connected())
    link.replay(engine)
    link.hear(engine.store(A), engine.store(B))
    another = Publisher(started=1000)
    link.hear(another.store(B))
    link.replay(another)
    assert (link.told.depth(A), link.told.depth(B)) == ((0, 0), (4, 4))
    assert (link.stream.live, link.stream.counts["restarts"]) == (True, 1)


def test_another_process_is_known_before_it_has_said_anything() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.disconnected())
    link.connect(Publisher())
    assert (link.told.depth(A), link.stream.live) == ((0, 0), True)


def test_another_process_that_has_said_more_than_the_last_is_known_by_what_it_said() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.disconnected())
    another = Publisher(started=1000)
    for end in range(1, 5):
        another.store(B[: end * BLOCK])
    link.connect(another)
    assert (link.told.depth(A), link.told.depth(B), link.stream.live) == ((0, 0), (4, 4), True)


def test_after_a_short_break_what_was_missed_is_asked_for_and_nothing_is_cleared() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.disconnected())
    engine.store(B)
    link.connect(engine)
    assert (link.told.depth(A), link.told.depth(B), link.stream.live) == ((4, 4), (4, 4), True)
    assert link.stream.counts == {}


def test_the_answer_to_an_older_question_is_not_listened_to() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.connected())
    older, link.stream.wanted = link.stream.wanted, None
    assert older is not None
    link.do(link.stream.disconnected())
    engine.store(B)
    link.do(link.stream.connected())
    link.do(link.stream.replayed(older, Message(0, payload(CLEARED))))
    link.do(link.stream.replay_ended(older, answered=True))
    assert (link.stream.state, link.told.depth(A)) == ("catching_up", (4, 4))
    link.replay(engine)
    assert (link.stream.live, link.told.depth(B)) == (True, (4, 4))


def test_an_answer_with_holes_is_asked_for_again_from_there() -> None:
    engine, link = Publisher(), Link()
    for end in range(1, 5):
        engine.store(A[: end * BLOCK])
    dropped: list[int] = []

    def passes(message: Message) -> bool:
        if message.seq in (1, 3) and message.seq not in dropped:
            dropped.append(message.seq)
            return False
        return True

    link.do(link.stream.connected())
    assert link.replay(engine, passes) == 2
    assert (link.told.depth(A), link.stream.live) == ((4, 4), True)


def test_an_engine_that_never_answers_is_given_up_and_followed_from_now_on() -> None:
    engine, link = Publisher(), Link()
    engine.store(A)
    link.do(link.stream.connected())
    link.hear(engine.store(B))
    assert link.replay(None) == 10
    assert link.stream.state == "partial"
    assert link.told.depth(B) == (4, 4)
    assert link.stream.counts["no_replay"] == 2


def test_a_history_without_our_last_message_may_be_another_processs() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.disconnected())
    another = Publisher(kept=1, started=1000)
    another.store(B[:BLOCK])
    another.store(B)
    link.connect(another)
    assert (link.told.depth(A), link.stream.state) == ((0, 0), "partial")


def test_a_replay_socket_that_keeps_nothing_is_asked_once_for_a_gap() -> None:
    engine, link = Publisher(kept=0), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    engine.store(B[:BLOCK])
    link.hear(engine.store(B))
    assert link.replay(engine) <= 2
    assert link.stream.state == "partial"
    assert link.told.depth(A) == (0, 0)


def test_more_messages_than_can_wait_are_asked_for_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extproc.engines.events.stream.MOST_WAITING", 2)
    engine, link = Publisher(), Link()
    link.do(link.stream.connected())
    for end in range(1, 5):
        link.hear(engine.store(A[: end * BLOCK]))
    # The first answer was made when there was but one message.
    assert link.replay(engine, lambda message: message.seq == 0 or link.asked > 1) == 2
    assert (link.told.depth(A), link.stream.live) == ((4, 4), True)
    assert link.stream.counts == {"overrun": 1, "gaps": 1}


def test_a_message_that_cannot_be_read_clears_what_is_known() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A), Message(1, b"\xc1"))
    assert (link.told.depth(A), link.stream.state) == ((0, 0), "partial")
    assert link.stream.counts == {"bad_batch": 1}


def test_an_unknown_parent_in_a_whole_history_clears_what_is_known() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A), engine.say(stored([77], B[:BLOCK], 76)))
    assert (link.told.depth(A), link.stream.state) == ((0, 0), "partial")
    assert link.stream.counts == {"unexplained": 1}


def test_unknown_events_in_a_message_leave_the_good_ones() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.say({"type": "New"}, stored([1], A[:BLOCK]), 7))
    assert (link.told.depth(A), link.stream.live) == ((1, 1), True)
    assert link.stream.fold.skipped == {"unknown_tag": 1, "malformed": 1}


@pytest.mark.parametrize("configured", [None, 1])
def test_another_rank_of_the_group_is_another_cache(configured: int | None) -> None:
    link = Link(replayable=False)
    link.stream._rank = configured
    link.do(link.stream.connected())
    link.hear(
        Message(0, payload(stored([1], A[:BLOCK]), rank=1)),
        Message(1, payload(removed(1), rank=0)),
        Message(2, payload(stored([2], A[BLOCK : 2 * BLOCK], 1), rank=None)),
    )
    assert link.told.depth(A) == (2, 2)
    assert link.stream.counts == {"other_rank": 1}


def test_an_engine_that_sleeps_is_empty_though_it_says_nothing() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    link.hear(engine.store(A))
    link.do(link.stream.emptied())
    link.replay(engine)
    assert (link.told.depth(A), link.stream.live) == ((0, 0), True)
    another = Publisher()
    another._number = 1
    link.hear(another.store(A))
    assert link.told.depth(A) == (4, 4)


def warm() -> Told:
    """An index that has something of the engine from before."""
    told = Told()
    keys = block_keys(pack_ids(B), root(), BLOCK)
    told.index.apply(Held(ENGINE, Tier.GPU, NO_BLOCK, keys, Source.EVENT))
    return told


def test_a_new_reader_makes_a_warm_index_what_a_whole_history_says() -> None:
    engine, link = Publisher(), Link(warm=True, told=warm())
    engine.store(A)
    engine.store(B)
    engine.evict(B)
    link.connect(engine)
    assert (link.told.depth(A), link.told.depth(B)) == ((4, 4), (3, 3))
    assert link.told.index.held_blocks(ENGINE) == 7
    link.hear(engine.evict(A))
    assert link.told.depth(A) == (3, 3)


def test_a_new_reader_of_a_part_of_the_history_leaves_a_warm_index_what_it_has() -> None:
    engine, link = Publisher(kept=1), Link(warm=True, told=warm())
    engine.store(B)
    engine.store(A)
    link.connect(engine)
    assert (link.told.depth(A), link.told.depth(B)) == ((4, 4), (4, 4))
    assert link.stream.state == "partial"


def test_a_warm_index_is_told_nothing_before_the_history_was_read() -> None:
    link = Link(warm=True, told=warm())
    link.do(link.stream.connected())
    link.replay(None)
    assert link.told.depth(B) == (4, 4)


def test_large_messages_are_taken_in_in_small_steps() -> None:
    engine, link = Publisher(), Link()
    link.connect(engine)
    ids = list(range(1000 * BLOCK))
    steps = [
        len(fact.keys) // 8
        for facts in link.stream.receive(engine.store(ids))
        for fact in facts
        if isinstance(fact, Held)
    ]
    assert (sum(steps), max(steps)) == (1000, 256)


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens to messages and processes: once all is quiet, the index is the cache.

    Without a whole history it may know less, and never more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.link = Link()
        self.engine = Publisher(kept=6)
        self.up = False
        self.started = 0.0

    prompts = st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 3)).map(
        lambda two: [two[0]] * BLOCK * two[1]
    )

    def deliver(self, message: Message, lost: bool) -> None:
        if self.up and not lost:
            self.link.hear(message)

    @rule(ids=prompts, lost=st.booleans())
    def store(self, ids: list[int], lost: bool) -> None:
        if self.engine.cache.depth(ids, Tier.GPU) < len(ids) // BLOCK:
            self.deliver(self.engine.store(ids), lost)

    @rule(ids=prompts, lost=st.booleans())
    def evict(self, ids: list[int], lost: bool) -> None:
        longer = ids + [ids[0]] * BLOCK
        cache = self.engine.cache
        if cache.holds(Tier.GPU, ids) and not cache.holds(Tier.GPU, longer):
            self.deliver(self.engine.evict(ids), lost)

    @rule(lost=st.booleans())
    def clear(self, lost: bool) -> None:
        self.engine.cache.copies.clear()
        self.deliver(self.engine.say(CLEARED), lost)

    @rule()
    def restart(self) -> None:
        self.drop()
        self.started += 1000
        self.engine = Publisher(kept=6, started=self.started)

    @rule()
    def drop(self) -> None:
        if self.up:
            self.link.do(self.link.stream.disconnected())
        self.up = False

    @precondition(lambda self: not self.up)
    @rule()
    def connect(self) -> None:
        self.up = True
        self.link.do(self.link.stream.connected())

    @precondition(lambda self: self.link.stream.wanted is not None and self.up)
    @rule(holes=st.sets(st.integers(0, 5)))
    def replay(self, holes: set[int]) -> None:
        passed: set[int] = set()

        def passes(message: Message) -> bool:
            first = message.seq not in passed
            passed.add(message.seq)
            return not (first and message.seq % 6 in holes)

        self.link.replay(self.engine, passes)

    @invariant()
    def what_is_sure_is_true(self) -> None:
        if self.link.stream.live and self.link.stream._last == self.engine._number - 1:
            self.compare(exactly=True)

    def compare(self, exactly: bool) -> None:
        for token in (1, 2, 3):
            ids = [token] * 4 * BLOCK
            known, true = self.link.told.depth(ids)[0], self.engine.cache.depth(ids, Tier.GPU)
            assert known == true if exactly else known <= true

    def teardown(self) -> None:
        self.drop()
        self.connect()
        self.link.replay(self.engine)
        self.compare(exactly=self.link.stream.live)
        self.deliver(self.engine.say(CLEARED), lost=False)
        self.deliver(self.engine.store([9] * BLOCK), lost=False)
        assert self.link.stream.live
        assert self.link.told.depth([9] * BLOCK) == (1, 1)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(CALM, max_examples=80, stateful_step_count=40)
