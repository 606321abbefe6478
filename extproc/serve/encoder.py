"""Bodies to chains of block keys: at once where most is known already, else in a thread.

Pure work all of it; what this module adds is where it runs and for how long it is waited for.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, ParamSpec, TypeVar

from extproc.errors import Unroutable
from extproc.prompt import Chain, TooNew, find_model, is_llm_path, parse_body, root_seed
from extproc.serve.depth import deeper_than
from extproc.serve.pool import Pool
from extproc.serve.pools import Pools
from extproc.serve.wishes import hint_in
from extproc.stages import Stages
from extproc.stream import Request

P = ParamSpec("P")
R = TypeVar("R")

INLINE_NEW_BYTES = 32 * 1024
"""What of a body no memo knows, up to here, is encoded on the event loop: a hop to a thread costs
more than that does, a millisecond or two."""

INLINE_BODY_BYTES = 512 * 1024
"""Larger bodies go to a thread unseen: to find what is known of them takes its time too."""

THREADS = 2
"""Tokenizers release the GIL: with two, a huge prompt does not hold up the next one."""

QUEUE_LIMIT = 64
"""Big bodies in the threads or waiting for one; the next is routed by load."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt that was understood: the pool that serves it, a chain for each of its texts, whose
    it is ("" where tenants are not told apart), and the secret that its keys were made with.

    hint: what the body's metadata tells of when the conversation comes back; None for nothing.
    """

    pool: Pool
    chains: tuple[Chain, ...]
    tenant: str
    secret: bytes
    hint: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all its chains."""
        return sum(chain.tokens for chain in self.chains)


class Encoder:
    """Encodes the bodies of requests for one of the pools."""

    def __init__(
        self, pools: Callable[[], Pools], timeout_s: float, max_json_depth: int | None
    ) -> None:
        self._pools = pools
        self._timeout_s = timeout_s
        self._max_json_depth = max_json_depth
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="encode")
        self._queued = 0

    def close(self) -> None:
        """Let the threads go; what they still encode is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def encode(self, request: Request, stages: Stages) -> Encoded:
        """The body's chains, within the time limit.

        Raises BadRequest, or Unroutable with the reason (`pick_timeout` when out of time).
        """
        if request.method != "POST" or not is_llm_path(request.path):
            raise Unroutable("other_path")
        body = request.body
        if body is None:
            raise Unroutable("body_not_seen")
        if not body:
            raise Unroutable("no_body")
        if len(body) <= INLINE_BODY_BYTES:
            try:
                return self._encode(request, body, stages, INLINE_NEW_BYTES)
            except TooNew:
                stages.spans.clear()
        # Stages of its own: a thread that is not waited for any more must not write into ours.
        inner = Stages()
        encoded = await self._in_thread(self._encode, request, body, inner, inf)
        stages.spans.extend(inner.spans)
        return encoded

    async def model_of(self, request: Request) -> str | None:
        """The model that the body names, where nothing else could be made of the request.

        Raises Unroutable where there is no time or no thread for it.
        """
        body = request.body
        if not body:
            return None
        if len(body) <= INLINE_NEW_BYTES:
            found = find_model(body)
        else:
            found = await self._in_thread(find_model, body)
        return found.name if found else None

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        if self._queued >= QUEUE_LIMIT:
            raise Unroutable("encoders_busy")
        self._queued += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, partial(function, *args, **named)
        )
        work.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(work), self._timeout_s)
        except TimeoutError as late:
            raise Unroutable("pick_timeout") from late

    def _done(self, work: "asyncio.Future[Any]") -> None:
        self._queued -= 1
        if not work.cancelled():
            work.exception()  # retrieved here, in case the pick gave up waiting

    def _encode(self, request: Request, body: bytes, stages: Stages, most_new: float) -> Encoded:
        with stages.stage("parse"):
            limit = self._max_json_depth
            if limit is not None:
                if len(body) > most_new:
                    raise TooNew  # its brackets are counted whether they are known or not
                if deeper_than(body, limit):
                    raise Unroutable("json_too_deep")
            prompt = parse_body(request.path, body, most_new)
        pool = self._pools().of(request, prompt.model)
        model = pool.models.get(prompt.model)
        if model is None:
            raise Unroutable("model_loading")
        size = pool.config.block_size
        header = pool.config.tenant_header
        tenant = request.headers.get(header.lower(), "") if header else ""
        secret = pool.secret
        root = root_seed(
            secret=secret,
            model=model.name,
            adapter=prompt.model if prompt.model in pool.adapters else prompt.adapter,
            salt=prompt.salt,
            tenant=tenant,
            block_size=size,
        )
        chains = model.encode(prompt, root, size, stages, most_new)
        return Encoded(pool, chains, tenant, secret, hint_in(pool.config, prompt.metadata))
