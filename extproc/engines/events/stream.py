"""One instance's event stream, without its sockets: order, gaps, restarts, and the way back.

Messages are numbered from 0 by the process that publishes them. One that is missing is asked for
again; a number that came before with another content means that the engine has started anew, with
an empty cache. What is known is *whole* if every message since the cache was last empty has been
taken in. Where the engine's history does not go back far enough, what is known of the instance is
cleared rather than trusted, and what comes from then on is added to it.
"""

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from extproc.engines.events.fold import Fold
from extproc.engines.events.wire import AllCleared, Message, Stored, decode_batch, split
from extproc.errors import PeerViolation
from extproc.index import Cleared, Fact, Source

Steps: TypeAlias = Iterator[Sequence[Fact]]
"""The facts that follow, in steps of about PIECE_BLOCKS blocks; to be exhausted before more."""

PIECE_BLOCKS: Final = 256
"""Blocks that one step takes in: some 0.3 ms."""

MOST_WAITING: Final = 10_000
"""Messages that wait for the end of a replay; more are let go, and asked for afterwards."""

_REMEMBERED: Final = 1 << 14
"""Messages of which a digest is kept, 8 bytes each: more than wait or are replayed, so that one
that comes both ways is not taken for a restart."""

_TRIES: Final = 5
"""Replay requests in a row that bring nothing new before the history counts as lost."""


class Request(NamedTuple):
    """A replay request: for the messages from number `start` on. number: which request it is."""

    start: int
    number: int


class Stream:
    """What one instance's publisher has said so far.

    replayable: whether it can be asked for its history. rank: of the data-parallel group; None for
    whichever speaks first. warm: the index has something of the instance from before: no fact is
    made until the history was read. If that is whole, the index is then told all of it anew;
    else what it has stays, beside what is known.

    wanted: a replay that is to be asked for, None for none. Who asks sets it to None, hands over
    what comes with `replayed`, and at its end `replay_ended`. A new one takes the place of the one
    before, whose answer is of no interest any more.
    whole: whether all is known that the cache holds. counts: what went wrong, by what.
    """

    def __init__(
        self, fold: Fold, replayable: bool, rank: int | None = None, warm: bool = False
    ) -> None:
        self.fold = fold
        self.wanted: Request | None = None
        self.whole = False
        self.counts: Counter[str] = Counter()
        self._replayable = replayable
        self._rank = rank
        self._silent = warm and replayable
        self._connected = False
        self._last = -1
        """Number of the last message that was taken in; -1 before the first."""
        self._digests = array("Q", bytes(8 * _REMEMBERED))
        self._catching_up = replayable
        """Whether live messages wait until a replay has ended."""
        self._waiting: deque[Message] = deque()
        self._request = 0
        """Number of the replay request that was made last."""
        self._torn = False
        """Whether the rest of the answer is no use, so that another has to be asked for."""
        self._heard = False
        """Whether the answer had anything to say."""
        self._asked_at = -1
        self._tries = 0
        self._gap_before = -1
        """Number of a message before which others were missing: asking twice for them is no use."""

    @property
    def state(self) -> str:
        """In a word: `down`, `catching_up`, `partial` (connected, and not whole) or `live`."""
        if not self._connected:
            return "down"
        if self._catching_up:
            return "catching_up"
        return "live" if self.whole else "partial"

    @property
    def live(self) -> bool:
        """Whether what no event confirms is not there."""
        return self.state == "live"

    # What happens to it

    def connected(self) -> Steps:
        """The subscription is in place, for the first time or again."""
        self._connected = True
        if self._replayable:
            self._waiting.clear()  # of the process before, if it is another one; else asked for now
            self._ask()
        elif self._last >= 0:
            self.counts["unwatched"] += 1
            yield from self._forget()

    def disconnected(self) -> Steps:
        """From here on messages may be missed."""
        self._connected = False
        yield from ()

    def emptied(self) -> Steps:
        """Something else says that the cache is empty now: its metrics, a reset connection."""
        yield from self._forget()
        self.whole = True
        if self._replayable:
            self._ask()

    def restate(self) -> Steps:
        """Tell the index all of it anew: others have told it what may not be so."""
        if not self._silent:
            yield [Cleared(self.fold.instance, Source.EVENT)]
            yield from self.fold.restate()

    def receive(self, message: Message) -> Steps:
        """The next live message."""
        if not self._catching_up:
            yield from self._next(message)
            return
        if len(self._waiting) >= MOST_WAITING:
            self.counts["overrun"] += 1
            self._waiting.clear()
        self._waiting.append(message)

    def replayed(self, request: Request, message: Message) -> Steps:
        """The next message of an answer to a replay request."""
        seq = message.seq
        if request.number != self._request or self._torn or seq < self._last:
            return
        heard, self._heard = self._heard, True
        if seq == self._last:
            if not self._is_known(message):
                self._torn = True
                yield from self._restarted()
            return
        unsure = self._last >= 0 and not heard  # our last one is not there to be compared
        if (unsure or seq > self._last + 1) and (self._last >= 0 or self.whole):
            if heard:  # a full queue on the way let some go: ask again from here
                self._torn = True
                return
            self.counts["history_lost"] += 1
            yield from self._forget()
        yield from self._take(message)

    def replay_ended(self, request: Request, answered: bool) -> Steps:
        """The answer is complete; or not `answered`: nothing came for too long."""
        if request.number != self._request:
            return
        if answered and not self._heard:
            if self._last < 0:
                self.whole = True  # it has not said anything yet
            else:
                self._torn = True
                yield from self._restarted()  # it has never said as much as we have heard
        self._tries = self._tries + 1 if self._last == self._asked_at else 0
        if self._torn or not answered:
            if self._tries < _TRIES:
                self._ask()
                return
            self.counts["no_replay"] += 1
            yield from self._forget()
        self._catching_up = False
        self._tries = 0
        if self._silent:
            self._silent = False
            if self.whole:
                yield [Cleared(self.fold.instance, Source.EVENT)]
            yield from self.fold.restate()
        while self._waiting and not self._catching_up:
            yield from self._next(self._waiting.popleft())

    # What follows

    def _ask(self) -> None:
        self._catching_up = True
        self._torn = self._heard = False
        self._asked_at = self._last
        self._request += 1
        self.wanted = Request(max(self._last, 0), self._request)

    def _next(self, message: Message) -> Steps:
        seq = message.seq
        if seq <= self._last:
            if self._is_known(message):
                return
            yield from self._restarted()
        if seq > self._last + 1:
            self.counts["gaps"] += 1
            if self._replayable and self._gap_before != seq:
                self._gap_before = seq
                self._waiting.appendleft(message)
                self._ask()
                return
            if self._last >= 0 or self.whole:
                yield from self._forget()
        yield from self._take(message)

    def _take(self, message: Message) -> Steps:
        if message.seq == 0:
            self.whole = True
        self._last = message.seq
        self._digests[message.seq % _REMEMBERED] = xxh3_64_intdigest(message.payload)
        try:
            batch = decode_batch(message.payload)
        except PeerViolation:
            self.counts["bad_batch"] += 1
            yield from self._forget()
            return
        for reason, events in batch.skipped.items():
            self.fold.skipped[reason] += events
        if self._rank is None:
            self._rank = batch.rank
        elif batch.rank is not None and batch.rank != self._rank:
            self.counts["other_rank"] += 1
            return
        orphans = self.fold.orphans
        for event in batch.events:
            if type(event) is Stored:
                for piece in split(event, PIECE_BLOCKS):
                    yield self._told(self.fold.apply(piece))
            else:
                yield self._told(self.fold.apply(event))
                self.whole = self.whole or type(event) is AllCleared
        if self.whole and self.fold.orphans > orphans:
            self.counts["unexplained"] += 1
            yield from self._forget()

    def _is_known(self, message: Message) -> bool:
        """Whether the message was taken in; of one too old to tell, yes would be a guess."""
        if message.seq <= self._last - _REMEMBERED:
            return False
        return self._digests[message.seq % _REMEMBERED] == xxh3_64_intdigest(message.payload)

    def _restarted(self) -> Steps:
        """Another process speaks: its cache began empty, and its numbers at 0."""
        self.counts["restarts"] += 1
        self._last = self._asked_at = -1
        self._tries = 0
        yield from self._forget()

    def _forget(self) -> Steps:
        self.whole = False
        yield self._told(self.fold.clear())

    def _told(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        return () if self._silent else facts
