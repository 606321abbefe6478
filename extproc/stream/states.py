"""The state machine of one ext_proc stream, as a table.

A stream carries one HTTP request and its answer. Each is a *side* with a machine of its own: the
proxy may show response headers while the request's body is still on its way, and a side's answers
are in order among themselves only. A side is shown as headers, any number of body chunks and
trailers, each of which may be absent; whatever comes last but trailers bears an end mark. So an
event is one of these parts, with or without the end.

How the proxy shows the body decides what may come and when it must be answered. That is the
*mode* of a side:

    HEADERS_ONLY  No body is shown. The headers' answer carries the pick.
    STREAMED      Chunks are shown as they come and each is answered at once; none is shown before
                  the headers are answered, so the pick cannot wait for them.
    BUFFERED      The body is shown whole, in one chunk, after the headers were answered. That
                  chunk's answer can still change the headers, so it carries the pick. An end mark
                  that is missing means that trailers follow, not that more of the body does.
    PARTIAL       As BUFFERED, but a body above the proxy's limit is cut. A missing end mark means
                  "cut" or "trailers follow", and nothing tells which: the body is not known.
    HELD          Chunks are shown without waiting for any answer. The headers' answer is held
                  until the end, which may be a trailers message, and then carries the pick.
    OVERRIDDEN    A proxy that shows less was asked for BUFFERED by `mode_override`. It may have
                  declined, unseen by us, and then chunks come as in STREAMED: only a chunk with an
                  end mark is taken for the body.
    UNTOUCHED     An upgrade or CONNECT: a tunnel, with no request in it to pick for.

The request's machine moves towards one question, `Ask`, asked at most once; what is shown before
it is answered joins what is held. The answer to it, or the deadline, releases what is held in the
order in which it came, and the first of it carries the pick. The machine of the answer side never
waits: every part is answered at once.

The sides are tied in four places:

- What a side's table does not have ends the stream, both sides of it.
- So does a refusal or a reply, because it is an answer to the client.
- Once response headers were shown either would cut the answer that is under way, so the request
  is released without a pick instead.
- Whether the answer's body is watched or rewritten comes with the request's pick.
"""

from collections.abc import Mapping
from enum import IntEnum, auto, unique
from typing import Final, TypeAlias


@unique
class Mode(IntEnum):
    """How a side's body is shown: see above."""

    HEADERS_ONLY = auto()
    STREAMED = auto()
    BUFFERED = auto()
    PARTIAL = auto()
    HELD = auto()
    OVERRIDDEN = auto()
    UNTOUCHED = auto()


@unique
class State(IntEnum):
    """How far a side is."""

    IDLE = auto()
    """Nothing was shown."""
    WAITING = auto()
    """The headers were answered; the one chunk that is the body is awaited."""
    HOLDING = auto()
    """Nothing was answered; more is to come."""
    ASKING = auto()
    """`Ask` is open; more may come."""
    ENDED = auto()
    """`Ask` is open; all was shown."""
    PASSING = auto()
    """All that was shown is answered; more may come and is answered at once."""
    DONE = auto()
    """All was shown and answered."""
    CLOSED = auto()
    """The stream was ended; whatever still comes is dropped."""


@unique
class Event(IntEnum):
    """What is shown of a side."""

    HEADERS = auto()
    HEADERS_END = auto()
    BODY = auto()
    BODY_END = auto()
    OVERFLOW = auto()
    """A BODY that brings what is held above its bound."""
    TRAILERS = auto()


@unique
class Action(IntEnum):
    """What to do with what is shown."""

    PASS = auto()
    """Answer it at once."""
    HOLD = auto()
    """Keep it."""
    EMPTY = auto()
    """Keep it and ask: there is no body."""
    WHOLE = auto()
    """Keep it and ask: what is kept is the body."""
    UNSEEN = auto()
    """Keep it and ask: the body is not known."""
    LET_GO = auto()
    """Keep it, then release everything without a pick."""


Table: TypeAlias = Mapping[tuple[Mode, State, Event], tuple[Action, State]]

# A cell reads `action>next state`; "." is illegal. Rows that begin with other than headers are for
# a proxy that was configured to skip those. A row that is missing has no legal event.

_REQUEST = """
mode          state    headers         headers_end  body             body_end     overflow        trailers

headers_only  idle     unseen>asking   empty>ended  .                .            .               unseen>ended
headers_only  asking   .               .            .                .            .               hold>ended
headers_only  passing  .               .            .                .            .               pass>done

streamed      idle     unseen>asking   empty>ended  unseen>asking    whole>ended  .               empty>ended
streamed      asking   .               .            hold>asking      hold>ended   let_go>passing  hold>ended
streamed      passing  .               .            pass>passing     pass>done    .               pass>done

buffered      idle     pass>waiting    empty>ended  whole>asking     whole>ended  .               empty>ended
buffered      waiting  .               .            whole>asking     whole>ended  .               empty>ended
buffered      asking   .               .            .                .            .               hold>ended
buffered      passing  .               .            .                .            .               pass>done

partial       idle     pass>waiting    empty>ended  unseen>asking    whole>ended  .               empty>ended
partial       waiting  .               .            unseen>asking    whole>ended  .               empty>ended
partial       asking   .               .            .                .            .               hold>ended
partial       passing  .               .            .                .            .               pass>done

held          idle     hold>holding    empty>ended  hold>holding     whole>ended  .               empty>ended
held          holding  .               .            hold>holding     whole>ended  unseen>asking   whole>ended
held          asking   .               .            hold>asking      hold>ended   let_go>passing  hold>ended
held          passing  .               .            pass>passing     pass>done    .               pass>done

overridden    idle     pass>waiting    .            .                .            .               .
overridden    waiting  .               .            unseen>asking    whole>ended  .               unseen>ended
overridden    asking   .               .            hold>asking      hold>ended   let_go>passing  hold>ended
overridden    passing  .               .            pass>passing     pass>done    .               pass>done

untouched     idle     pass>passing    pass>done    .                .            .               .
untouched     passing  .               .            pass>passing     pass>done    .               pass>done
"""  # noqa: E501

_ANSWER = """
mode          state    headers         headers_end  body             body_end     overflow        trailers

headers_only  idle     pass>passing    pass>done    .                .            .               pass>done
headers_only  passing  .               .            .                .            .               pass>done

streamed      idle     pass>passing    pass>done    pass>passing     pass>done    .               pass>done
streamed      passing  .               .            pass>passing     pass>done    .               pass>done

buffered      idle     pass>waiting    pass>done    pass>passing     pass>done    .               pass>done
buffered      waiting  .               .            pass>passing     pass>done    .               pass>done
buffered      passing  .               .            .                .            .               pass>done

partial       idle     pass>waiting    pass>done    pass>passing     pass>done    .               pass>done
partial       waiting  .               .            pass>passing     pass>done    .               pass>done
partial       passing  .               .            .                .            .               pass>done
"""  # noqa: E501


def _read(grid: str) -> Table:
    heading, *rows = (line.split() for line in grid.splitlines() if line)
    table: dict[tuple[Mode, State, Event], tuple[Action, State]] = {}
    for mode, state, *cells in rows:
        for event, cell in zip(heading[2:], cells, strict=True):
            if cell != ".":
                action, _, then = cell.partition(">")
                table[Mode[mode.upper()], State[state.upper()], Event[event.upper()]] = (
                    Action[action.upper()],
                    State[then.upper()],
                )
    return table


REQUEST_TABLE: Final = _read(_REQUEST)
ANSWER_TABLE: Final = _read(_ANSWER)
"""What a side does, by (mode, state, event): action and next state. What is absent is illegal."""
