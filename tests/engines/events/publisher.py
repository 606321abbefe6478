"""An engine that publishes, and a wire that loses messages: what a `Stream` lives with."""

from collections import deque
from collections.abc import Callable, Iterable

from extproc.engines.events import Fold, Message, Stream
from extproc.engines.events.stream import Steps
from extproc.index import Tier
from tests.engines.events.engine import payload
from tests.engines.events.model import BLOCK, ENGINE, Cache, Told, root


class Publisher:
    """One process of an engine: a cache, numbered messages, and the last of them once more.

    kept: messages that a replay can give.
    """

    def __init__(self, kept: int = 10_000, started: float = 0.0) -> None:
        self.cache = Cache()
        self.history: deque[Message] = deque(maxlen=kept)
        self._number = 0
        self._started = started

    def say(self, *events: object) -> Message:
        """A message with these events, which is sent and kept."""
        self._started += 1
        message = Message(self._number, payload(*events, time=self._started))
        self._number += 1
        self.history.append(message)
        return message

    def store(self, ids: Iterable[int]) -> Message:
        """Fill the blocks of a prompt that are not there yet."""
        tokens = list(ids)
        start = self.cache.depth(tokens, Tier.GPU)
        return self.say(self.cache.store(tokens, start, len(tokens) // BLOCK, Tier.GPU))

    def evict(self, ids: Iterable[int]) -> Message:
        """Lose the last block of a prompt."""
        tokens = tuple(ids)
        return self.say(self.cache.evict(Tier.GPU, self.cache.names[tokens]))


class Link:
    """A stream with an index behind it, and what the reader would do for it."""

    def __init__(
        self, replayable: bool = True, warm: bool = False, told: Told | None = None
    ) -> None:
        self.told = told or Told()
        self.stream = Stream(Fold(ENGINE, BLOCK, root), replayable, warm=warm)
        self.asked = 0
        """Replay requests so far."""

    def do(self, steps: Steps) -> None:
        """Take the steps, and put their facts into the index."""
        for facts in steps:
            for fact in facts:
                self.told.index.apply(fact)

    def hear(self, *messages: Message) -> None:
        """Live messages."""
        for message in messages:
            self.do(self.stream.receive(message))

    def replay(
        self,
        publisher: Publisher | None,
        passes: Callable[[Message], bool] = lambda message: True,
    ) -> int:
        """Answer replay requests until there is none; how many there were.

        publisher: None where nobody answers. passes: what gets through.
        """
        before = self.asked
        while self.stream.wanted is not None:
            request, self.stream.wanted = self.stream.wanted, None
            self.asked += 1
            assert self.asked < before + 50, "it asks for ever"
            for message in list(publisher.history) if publisher else []:
                if message.seq >= request.start and passes(message):
                    self.do(self.stream.replayed(request, message))
            self.do(self.stream.replay_ended(request, answered=publisher is not None))
        return self.asked - before

    def connect(self, publisher: Publisher) -> None:
        """The subscription is in place, and what was said before is asked for."""
        self.do(self.stream.connected())
        self.replay(publisher)
