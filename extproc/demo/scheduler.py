"""A virtual engine: when each token of a request comes, and what the engine counts.

The model of time is the one of our replays: one prefill at a time, first come first served, as long
as its uncached tokens take plus a constant a request; then a decode step a token, the longer the
more requests run. A request takes the blocks for its whole answer when it is admitted, so nothing
is ever preempted; where too few are free, it and all behind it wait.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from extproc.demo.prefix_cache import Lease, PrefixCache, TokenChain


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast the engine is."""

    prefill_tokens_per_s: float
    request_ms: float
    decode_ms: float
    decode_ms_per_running: float

    def prefill_s(self, uncached_tokens: int) -> float:
        """Seconds to the first token of a request that does not wait."""
        return uncached_tokens / self.prefill_tokens_per_s + self.request_ms / 1000

    def decode_s(self, running: int) -> float:
        """Seconds from one token to the next while so many requests run."""
        return (self.decode_ms + self.decode_ms_per_running * running) / 1000


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to generate.

    chain: prompt and answer without an end token, which is sampled but never computed.
    cached_tokens: of the prompt; known once the first token has come.
    """

    chain: TokenChain
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    cached_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        """Tokens with KV at the end: the last one sampled has none."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(slots=True)
class Counters:
    """What the engine counts since its start.

    prefix_queries, prefix_hits: prompt tokens looked up and found, counted at admission.
    prefills, queue_s, prefill_s, prompt_tokens, cached_tokens: of requests whose prefill ended.
    finished: requests by finish reason; one whose client left is not in it, as in vLLM.
    """

    prefix_queries: int = 0
    prefix_hits: int = 0
    prefills: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)


class VirtualEngine:
    """Runs jobs on a cache in the time that a real engine would take."""

    def __init__(self, cache: PrefixCache, timing: Timing, max_running: int) -> None:
        self.cache = cache
        self.counters = Counters()
        self._timing = timing
        self._max_running = max_running
        self._turn = asyncio.Lock()  # fair: waiters get it in the order they came
        self._freed = asyncio.Event()
        self._waiting: set[Job] = set()
        self._running: dict[Job, Lease] = {}

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in prefill or decode."""
        return len(self._running)

    async def generate(self, job: Job) -> AsyncGenerator[int, None]:
        """Yield the number of each token, from 0, when it comes.

        Closing the generator or cancelling its task aborts the job: its blocks are free at once,
        and what was computed until then stays cached.
        """
        clock = asyncio.get_running_loop().time
        self._waiting.add(job)
        try:
            arrived = clock()
            async with self._turn:
                lease = await self._admit(job)
                await self._prefill(job, lease, queue_s=clock() - arrived)
            due = clock()
            for number in range(job.output_tokens):
                if number:
                    due += self._timing.decode_s(self.running)
                    await asyncio.sleep(due - clock())
                self.cache.commit(lease, job.prompt_tokens + number)
                self.counters.generation_tokens += 1
                yield number
            self.counters.finished[job.finish_reason] += 1
        finally:
            self._leave(job)

    async def _prefill(self, job: Job, lease: Lease, queue_s: float) -> None:
        seconds = self._timing.prefill_s(job.prompt_tokens - job.cached_tokens)
        await asyncio.sleep(seconds)
        self.cache.commit(lease, job.prompt_tokens)
        counters = self.counters
        counters.prefills += 1
        counters.queue_s += queue_s
        counters.prefill_s += seconds
        counters.prompt_tokens += job.prompt_tokens
        counters.cached_tokens += job.cached_tokens

    async def _admit(self, job: Job) -> Lease:
        while (lease := self._try(job)) is None:
            self._freed.clear()
            await self._freed.wait()
        self._waiting.discard(job)
        self._running[job] = lease
        job.cached_tokens = lease.cached * self.cache.block_size
        self.counters.prefix_queries += job.prompt_tokens
        self.counters.prefix_hits += job.cached_tokens
        return lease

    def _try(self, job: Job) -> Lease | None:
        if self.running >= self._max_running:
            return None
        return self.cache.acquire(job.chain, job.prompt_tokens, job.computed_tokens)

    def _leave(self, job: Job) -> None:
        self._waiting.discard(job)
        if lease := self._running.pop(job, None):
            self.cache.release(lease)
            self._freed.set()
