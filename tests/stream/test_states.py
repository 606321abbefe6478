"""The tables themselves: what they promise for every row."""

import pytest

from extproc.stream.states import ANSWER_TABLE, REQUEST_TABLE, Action, Event, Mode, State, Table

ASKS = (Action.EMPTY, Action.WHOLE, Action.UNSEEN)
ENDS = (Event.HEADERS_END, Event.BODY_END, Event.TRAILERS)
TABLES = pytest.mark.parametrize("table", [REQUEST_TABLE, ANSWER_TABLE], ids=["request", "answer"])


@TABLES
def test_an_end_leads_to_an_end_and_nothing_follows_it(table: Table) -> None:
    for (_, state, event), (_, then) in table.items():
        assert state not in (State.DONE, State.ENDED, State.CLOSED)
        assert (then in (State.DONE, State.ENDED)) == (event in ENDS)


@TABLES
def test_every_state_is_reached_from_idle(table: Table) -> None:
    for mode in {mode for mode, _, _ in table}:
        reached = {State.IDLE}
        # What is released passes on.
        released = {State.HOLDING: State.PASSING, State.ASKING: State.PASSING}
        while True:
            steps = {then for (m, s, _), (_, then) in table.items() if m is mode and s in reached}
            more = reached | steps | {released[s] for s in reached if s in released}
            if more == reached:
                break
            reached = more
        assert {state for m, state, _ in table if m is mode} <= reached


def test_a_question_is_asked_only_before_the_request_passes() -> None:
    for (_, state, _), (action, then) in REQUEST_TABLE.items():
        if action in ASKS:
            assert state in (State.IDLE, State.WAITING, State.HOLDING)
            assert then in (State.ASKING, State.ENDED)
        if state in (State.ASKING, State.HOLDING):
            assert action is not Action.PASS


def test_headers_come_first_and_once() -> None:
    for (_, state, event), _ in [*REQUEST_TABLE.items(), *ANSWER_TABLE.items()]:
        if event in (Event.HEADERS, Event.HEADERS_END):
            assert state is State.IDLE


def test_the_answer_side_never_waits() -> None:
    assert {action for action, _ in ANSWER_TABLE.values()} == {Action.PASS}


def test_only_a_tunnel_goes_without_a_question() -> None:
    for mode in Mode:
        asks = any(action in ASKS for (m, _, _), (action, _) in REQUEST_TABLE.items() if m is mode)
        assert asks == (mode is not Mode.UNTOUCHED)
