"""A simulated engine in virtual time: what a replay sends its requests to.

The model (docs/policy.md): one prefill at a time, first come first served; a prefill takes
`overhead_s` and the time of its uncached tokens; whole blocks hit, the last token is always
computed; the cache is LRU over blocks, the tail of a prefix older than its head; answers are
decoded together, a token each `decode_s + decode_running_s × running`, which sets when a request
ends and, unless `decode_slows` says so, does not slow prefills.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field

from extproc.index import Capacity, Held, Joined, PrefixIndex, Source, Tier
from extproc.replay.traffic import Request
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys

_SELF = InstanceId("self")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """How fast an engine is.

    prefill_rate: uncached tokens a second. overhead_s: of every prefill. decode_s,
    decode_running_s: seconds a token, alone and for each answer under way. attention_s: seconds per
    pair of a computed and an attended token (a prefill's quadratic part). decode_slows: share by
    which each answer under way lengthens a prefill (chunked prefill).
    """

    prefill_rate: float = 16_000.0
    overhead_s: float = 0.020
    decode_s: float = 0.012
    decode_running_s: float = 0.0002
    attention_s: float = 0.0
    decode_slows: float = 0.0

    def prefill_s(self, tokens: int, cached: int, running: int) -> float:
        """Seconds of a prefill of `tokens` of which `cached` are there."""
        uncached = tokens - cached
        pairs = uncached * (tokens + cached) / 2
        seconds = uncached / self.prefill_rate + pairs * self.attention_s
        return self.overhead_s + seconds * (1.0 + self.decode_slows * running)


@dataclass(slots=True, eq=False)
class Job:
    """A request on an engine. cached: tokens that hit; with prefill_s known when that starts."""

    request: Request
    at: float
    cached: int = 0
    prefill_s: float = 0.0
    prefill_ends: float = 0.0
    first_token: float = 0.0


@dataclass(slots=True)
class Engine:
    """One engine. Its owner calls `advance` at `next_event` and hands on what comes out.

    capacity: of its cache, in blocks. prefilled_s, prefilled, computed_tokens: counted as a real
    engine does, of the prefills that have ended.
    """

    model: EngineModel
    capacity: int
    block_size: int
    cache: PrefixIndex = field(init=False)
    busy_s: float = 0.0
    prefilled_s: float = 0.0
    prefilled: int = 0
    computed_tokens: int = 0
    _waiting: deque[Job] = field(default_factory=deque)
    _prefilling: Job | None = None
    _decoding: list[tuple[float, int, Job]] = field(default_factory=list)
    _tokens: float = 0.0
    """Tokens that an answer decoded since the beginning would have: answers advance together."""
    _at: float = 0.0
    _order: int = 0

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Lose the cache, as in a restart."""
        self.cache = PrefixIndex()
        self.cache.apply(Joined(_SELF, self.block_size))
        self.cache.apply(Capacity(_SELF, Tier.GPU, self.capacity))

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests whose prefill has not begun."""
        return len(self._waiting)

    @property
    def queued(self) -> int:
        """Requests whose prefill has not ended."""
        return len(self._waiting) + (self._prefilling is not None)

    @property
    def next_event(self) -> float:
        """When something happens next; infinity if nothing does."""
        soonest = self._prefilling.prefill_ends if self._prefilling else float("inf")
        if self._decoding:
            left = self._decoding[0][0] - self._tokens
            soonest = min(soonest, self._at + max(left, 0.0) * self._token_s)
        return soonest

    def submit(self, job: Job) -> None:
        """A request arrives. Call `advance` to its time first."""
        self._waiting.append(job)
        self._start(job.at)

    def advance(self, now: float) -> tuple[list[Job], list[Job]]:
        """Let time pass to `now`, not beyond `next_event`: (prefills that ended, answers)."""
        if self._decoding:
            self._tokens += (now - self._at) / self._token_s
        self._at = now
        ended = []
        while self._decoding and self._decoding[0][0] <= self._tokens + 1e-9:
            ended.append(heapq.heappop(self._decoding)[2])
        for job in ended:
            self._hold(job.request.answered)
        first = []
        if (done := self._prefilling) and done.prefill_ends <= now:
            done.first_token = now
            self.prefilled_s += done.prefill_s
            self.prefilled += 1
            self.computed_tokens += done.request.tokens - done.cached
            first.append(done)
            self._prefilling = None
            self._order += 1
            heapq.heappush(self._decoding, (self._tokens + done.request.output, self._order, done))
            self._start(now)
        return first, ended

    def drain(self) -> list[Job]:
        """Stop at once: what was under way, to be sent elsewhere."""
        lost = [*self._waiting, *(job for _, _, job in self._decoding)]
        if self._prefilling:
            lost.append(self._prefilling)
        self._waiting.clear()
        self._decoding.clear()
        self._prefilling = None
        return lost

    @property
    def _token_s(self) -> float:
        return self.model.decode_s + self.model.decode_running_s * len(self._decoding)

    def _start(self, now: float) -> None:
        if self._prefilling or not self._waiting:
            return
        job = self._prefilling = self._waiting.popleft()
        request = job.request
        depth = self.cache.match(request.keys).get(_SELF)
        most = (request.tokens - 1) // self.block_size
        job.cached = min(depth.gpu, most) * self.block_size if depth else 0
        seconds = self.model.prefill_s(request.tokens, job.cached, len(self._decoding))
        job.prefill_s = seconds
        job.prefill_ends = now + seconds
        self.busy_s += seconds
        self._hold(request.keys)

    def _hold(self, keys: PackedKeys) -> None:
        if keys:
            self.cache.apply(Held(_SELF, Tier.GPU, NO_BLOCK, keys, Source.PICK))
