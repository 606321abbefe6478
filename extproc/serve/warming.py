"""Warm-up: the hottest shared prefixes are computed at a new instance before it needs them.

By requests of one token that go straight to the engine, past the proxy.

Off unless configured. What is sent are token ids of prompts that came of late; they are kept in
memory only, as few as are configured, and never logged.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import aiohttp

from extproc.config import WarmUp
from extproc.errors import BadRequest, Unroutable
from extproc.index import Held, Source, Tier
from extproc.prompt import ServedModel, parse_body, unpack_ids
from extproc.routing import HotPrefixes
from extproc.serve.choice import Choice
from extproc.serve.encoder import Encoded
from extproc.serve.pool import Pool
from extproc.stream import Request
from extproc.telemetry import LogOnce, Metrics
from extproc.terms import (
    KEY_BYTES,
    NO_BLOCK,
    TOKEN_BYTES,
    BlockKey,
    InstanceId,
    PackedKeys,
    TokenIds,
)

logger = logging.getLogger("homing.warming")

HOT_PICKS = 3
"""A prefix is hot from so many picks on: two may be one chat that asked again."""

TICK_S = 0.2
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What it takes to have an engine compute a prefix. keys: of its blocks, made with `secret`."""

    keys: PackedKeys
    secret: bytes
    ids: list[int]
    model: str
    salt: str
    tenant: str


class _Warmed:
    """One pool's: what is hot, and who is new."""

    def __init__(self) -> None:
        self.hot = HotPrefixes()
        self.kept: dict[BlockKey, _Prefix] = {}
        self.seen: set[InstanceId] | None = None
        self.todo: dict[InstanceId, list[BlockKey]] = {}
        self.next_at = 0.0
        self.reading = False


class Warming:
    """Learns at the picks what is hot, and prefetches it to instances that are new."""

    def __init__(self, pools: Callable[[], Sequence[Pool]], metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics
        self._of: dict[str, _Warmed] = {}
        self._once = LogOnce(logger)
        self._tasks: set[asyncio.Task[None]] = set()

    def picked(self, request: Request, encoded: Encoded, choice: Choice) -> None:
        """A request was picked for. Keeps the ids of its prefix where that is hot and not kept."""
        pool = encoded.pool
        options = pool.config.warm_up
        if options is None or choice.prefix is None or request.body is None:
            return
        warmed = self._of.setdefault(pool.name, _Warmed())
        cached = max(score.cached_tokens for score in choice.ranking.scores)
        blocks = cached // pool.config.block_size
        if blocks * pool.config.block_size > options.max_tokens:
            return
        picks = warmed.hot.count(choice.prefix, blocks)
        if picks < HOT_PICKS or choice.prefix in warmed.kept or warmed.reading:
            return
        wanted = {key for key, _ in warmed.hot.hottest(options.prefixes, HOT_PICKS)}
        if choice.prefix not in wanted:
            return
        for key in warmed.kept.keys() - wanted:
            del warmed.kept[key]
        warmed.reading = True
        keys = PackedKeys(encoded.chains[0].keys[: blocks * KEY_BYTES])
        self._start(self._keep(warmed, choice.prefix, keys, request, encoded))

    def emptied(self, pool: Pool, instance: InstanceId) -> None:
        """An engine has begun anew: it is as cold as a new one."""
        warmed = self._of.get(pool.name)
        if warmed is not None and warmed.seen is not None:
            warmed.seen.discard(instance)
            warmed.todo.pop(instance, None)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PATIENCE_S), cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            try:
                while True:
                    for pool in self._pools():
                        if (options := pool.config.warm_up) is not None:
                            await self._tend(session, pool, options)
                    await asyncio.sleep(TICK_S)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(
        self,
        warmed: _Warmed,
        prefix: BlockKey,
        keys: PackedKeys,
        request: Request,
        encoded: Encoded,
    ) -> None:
        """Tokenize the prompt again, beside the picks, and keep what its prefix is made of."""
        pool = encoded.pool
        tokens = len(keys) // KEY_BYTES * pool.config.block_size
        try:
            assert request.body is not None
            prompt = parse_body(request.path, request.body)
            model = pool.models.get(prompt.model)
            if model is not None:
                ids = await asyncio.to_thread(_first_ids, model, request, tokens)
                name = pool.renames.get(prompt.model, prompt.model)
                warmed.kept[prefix] = _Prefix(
                    keys, encoded.secret, ids, name, prompt.salt, encoded.tenant
                )
        except (BadRequest, Unroutable):
            pass  # it was read once, for the pick; whatever it is now, it is not needed
        finally:
            warmed.reading = False

    async def _tend(self, session: aiohttp.ClientSession, pool: Pool, options: WarmUp) -> None:
        """Note who is new, and do one prefetch if it is time for one."""
        warmed, now = self._of.setdefault(pool.name, _Warmed()), monotonic()
        listed = {instance.id for instance in pool.instances}
        if warmed.seen is None:
            warmed.seen = set(listed)  # who was there before this process is not new
        for new in listed - warmed.seen:
            hottest = warmed.hot.hottest(options.prefixes, HOT_PICKS)
            warmed.todo[new] = [key for key, _ in hottest if key in warmed.kept]
        warmed.seen = set(listed)
        for gone in warmed.todo.keys() - listed:
            del warmed.todo[gone]
        if now < warmed.next_at or self._is_busy(pool, options, now):
            return
        for instance, keys in list(warmed.todo.items()):
            if not keys:
                del warmed.todo[instance]
            elif self._may(pool, instance, now):
                if (prefix := warmed.kept.get(keys.pop(0))) is not None:
                    warmed.next_at = now + len(prefix.ids) / options.tokens_per_s
                    await self._prefetch(session, pool, instance, prefix, options)
                return

    def _is_busy(self, pool: Pool, options: WarmUp, now: float) -> bool:
        return pool.outlook.utilisation.at(now, len(pool.instances)) > options.max_utilisation

    def _may(self, pool: Pool, instance: InstanceId, now: float) -> bool:
        """Usable, with nothing to do, and ours to warm: of several replicas one does it."""
        listed = pool.members.of(instance)
        if listed is None or listed not in pool.usable(pool.instances, now):
            return False
        return pool.load.in_flight_at(instance) == 0 and pool.log.reads(pool.name, instance)

    async def _prefetch(
        self,
        session: aiohttp.ClientSession,
        pool: Pool,
        instance: InstanceId,
        prefix: _Prefix,
        options: WarmUp,
    ) -> None:
        listed = pool.members.of(instance)
        if listed is None:
            return
        headers = dict(pool.headers_of(instance))
        if options.api_key_file is not None:
            with suppress(OSError):
                key = options.api_key_file.read_text().strip()
                headers["authorization"] = f"Bearer {key}"
        body = {"model": prefix.model, "prompt": prefix.ids, "max_tokens": 1}
        if prefix.salt:
            body["cache_salt"] = prefix.salt
        url = f"http://{listed.endpoint}/v1/completions"
        ticket = pool.outlook.start(instance, float(len(prefix.ids)), monotonic())
        outcome = "failed"
        try:
            async with session.post(url, json=body, headers=headers, allow_redirects=False) as said:
                await said.read()
                if said.status == 200:
                    outcome = "done"
                else:
                    self._once.warning(pool.name, "warm-up of %s: HTTP %d", instance, said.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._once.warning(pool.name, "warm-up of %s: %s", instance, type(error).__name__)
        finally:
            pool.load.end(ticket)
            self._metrics.prefetches.labels(pool.name, outcome).inc()
        is_told = instance in pool.assured or prefix.secret != pool.secret
        if outcome == "done" and not is_told:
            held = Held(instance, Tier.GPU, NO_BLOCK, prefix.keys, Source.ANSWER, prefix.tenant)
            pool.append([held])

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _first_ids(model: ServedModel, request: Request, tokens: int) -> list[int]:
    """The first token ids of its prompt. Reads the body anew: a prompt belongs to one thread."""
    assert request.body is not None
    (ids, *_) = model.token_ids(parse_body(request.path, request.body))
    return list(unpack_ids(TokenIds(ids[: tokens * TOKEN_BYTES])))
