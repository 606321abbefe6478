"""A routed request until its answer ends: what it told the index and the load."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

from extproc.index import Depths, Dropped, Held, Source, Tier
from extproc.prompt import Chain
from extproc.routing import Ticket
from extproc.serve.hints import Hint
from extproc.serve.pool import Pool
from extproc.serve.responses import IdReader, Responses
from extproc.stream import Answered
from extproc.stream.headers import UPSTREAM_CONNECTION_FAILURE
from extproc.telemetry import Metrics
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, Endpoint, InstanceId, PackedKeys


@dataclass(slots=True)
class Placed:
    """One pick's consequences.

    The picked instance is expected to hold the prompt from the decision on: blocks that count only
    after their prefill send a burst of one cold prefix everywhere (docs/policy.md). When the
    engine refuses the request, or another instance serves it, what was newly asserted is taken
    back.

    secret: that the chains' keys were made with. order: endpoints as picked, best first.
    endpoint: whose the request is, as far as is known. hint: when its next turn comes.
    """

    pool: Pool
    instance: InstanceId
    endpoint: Endpoint
    order: tuple[Endpoint, ...]
    chains: tuple[Chain, ...]
    secret: bytes
    uncached: float
    metrics: Metrics
    tenant: str
    hint: Hint | None = None
    _is_answered: bool = False
    _ticket: Ticket | None = None
    _asserted: list[Held] = field(default_factory=list)
    _responses: Responses | None = None
    _ids: IdReader | None = None

    def start(self, depths: Sequence[Depths], now: float) -> None:
        """The instance was picked. depths: what the index has of each chain for it."""
        self._ticket = self.pool.outlook.start(self.instance, self.uncached, now)
        self._expect(depths)

    def answered(self, answer: Answered) -> None:
        """Response headers came. A failed request leaves no blocks; a retried one moves."""
        status = f"{answer.status // 100}xx" if answer.status else "none"
        self.metrics.answers.labels(self.pool.name, status).inc()
        self._learn(answer)
        if answer.served is not None and answer.served != self.endpoint:
            self._move(answer.served)
        if answer.status >= 400:
            self._retract()
        self._is_answered = 200 <= answer.status < 300

    def _learn(self, answer: Answered) -> None:
        """Who could not be reached: all before the last one tried, and the last if so flagged."""
        served, conditions, now = answer.served, self.pool.members.conditions, monotonic()
        last = Endpoint(served) if served is not None else self.endpoint
        for endpoint in self.order[: max(answer.attempts - 1, 0)]:
            if endpoint != last:
                conditions.unreachable(endpoint, now)
        if answer.flags is None:
            return
        if answer.flags & UPSTREAM_CONNECTION_FAILURE:
            conditions.unreachable(last, now)
        elif answer.flags == 0 and answer.attempts:
            conditions.answered(last)

    @property
    def reads_answer(self) -> bool:
        """Whether there is something to be learnt from the answer's body, where it is shown."""
        return self.hint is not None and self.hint.answer is not None

    def watch(self, responses: Responses) -> None:
        """The answer's body will be shown: learn its response id."""
        self._responses = responses
        self._ids = IdReader()

    def answer_body(self, data: bytes) -> None:
        """A piece of the watched body."""
        if self._responses and self._ids and (response := self._ids.feed(data)):
            self._responses.remember(response, self.pool, self.instance)
        if self.hint is not None and self.hint.answer is not None:
            self.hint.answer.feed(data)

    def ended(self) -> None:
        """The stream is over: the answer ended, or the client or the proxy went away."""
        if self._ticket is not None:
            self.pool.load.end(self._ticket)
            if self.hint is not None and self._is_answered:
                self.hint.ended(self.instance)
            if self.pool.line is not None:
                self.pool.line.poke()
        if (events := self.pool.config.events) is not None:
            due = monotonic() + events.expire_s
            for held in self._asserted:
                if held.keys:
                    self.pool.expectations.add(held.instance, held.keys, due)
            self._asserted = []

    def _expect(self, depths: Sequence[Depths]) -> None:
        if self.pool.members.is_misfit(self.instance):
            return
        known = [
            (chain, depth) for chain, depth in zip(self.chains, depths, strict=True) if chain.keys
        ]
        self._asserted = [
            _expected(self.instance, chain.keys, depth.gpu, self.tenant) for chain, depth in known
        ]
        self.pool.expect([chain for chain, _ in known], self._asserted, self.secret)
        if self.pool.config.events is not None and self.instance not in self.pool.assured:
            for chain, _ in known:
                self.pool.routed.add(self.instance, chain.keys)

    def _retract(self) -> None:
        """Take back what the index did not know before the pick."""
        dropped = [
            Dropped(held.instance, held.tier, held.keys, Source.ANSWER)
            for held in self._asserted
            if held.keys
        ]
        self._asserted = []
        self.pool.retract(dropped, self.secret)

    def _move(self, served: str) -> None:
        """Envoy retried elsewhere: the load and the expectation belong to who served."""
        self._retract()
        self.metrics.rerouted.labels(self.pool.name).inc()
        self.ended()
        actual = self.pool.members.at(served, like=self.instance)
        if actual is None:
            self._ticket = None
            return
        self.instance, self.endpoint = actual.id, actual.endpoint
        depths = [
            self.pool.index.match(chain.keys).get(actual.id, Depths(0, 0)) for chain in self.chains
        ]
        self.start(depths, monotonic())


def _expected(instance: InstanceId, keys: PackedKeys, depth: int, tenant: str) -> Held:
    """The pick's fact: the whole chain, written as what the instance does not hold yet."""
    cut = depth * KEY_BYTES
    parent = BlockKey(int.from_bytes(keys[cut - KEY_BYTES : cut], "little")) if cut else NO_BLOCK
    return Held(instance, Tier.GPU, parent, PackedKeys(keys[cut:]), Source.PICK, tenant)
