"""The path of one request, from its body to the pick: one straight line (DESIGN.md).

    body ─▶ parse ─▶ render ─▶ tokenize ─▶ hash ─▶ match ─▶ choose

Whatever breaks on the way, the request is still routed: by load, counted, logged once. What stands
beside the line: an alias is replaced before it, and the list of models needs none of it.
"""

import itertools
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, time_ns
from typing import TypeAlias

from extproc.errors import BadRequest, NoEndpoint, PreviousResponse, Saturated, Unroutable
from extproc.index import Depths
from extproc.routing import Ranking, Score
from extproc.serve import reasons
from extproc.serve.choice import Asked, Choice, choose
from extproc.serve.encoder import Encoded, Encoder
from extproc.serve.hints import came_back, hint_of
from extproc.serve.listing import asks_for_models, list_models
from extproc.serve.overrides import NOTHING as NO_OVERRIDE
from extproc.serve.overrides import override_of
from extproc.serve.placed import Placed
from extproc.serve.pool import Pool
from extproc.serve.pools import Pools
from extproc.serve.rename import Renamed, Renamer
from extproc.serve.report_mode import ReportModes
from extproc.serve.responses import PATH, Answerer, Responses
from extproc.serve.warming import Warming
from extproc.serve.wishes import admit, shed
from extproc.stages import Stages
from extproc.stream import Pick, Refusal, Reply, Request
from extproc.stream.headers import SCORES
from extproc.telemetry import LogOnce, Metrics, Tracer
from extproc.terms import Endpoint

logger = logging.getLogger("homing.picker")

EXPECTED_REASONS = frozenset(
    ("other_path", "no_body", "previous_response", "previous_response_unknown")
)
"""Nothing is wrong with such a request: counted, not logged."""


Patience: TypeAlias = Callable[[float], Awaitable[bool]]
"""Whether the proxy waits for so many seconds for a pick. It is told to."""


async def no_patience(_: float) -> bool:
    """Of a proxy that says nothing of it."""
    return False


class Picker:
    """Picks for requests. Never raises: what cannot be understood is placed by load."""

    def __init__(
        self,
        pools: Callable[[], Pools],
        encoder: Encoder,
        fallbacks: int,
        metrics: Metrics,
        tracer: Tracer | None,
        explain: bool,
        scores: bool,
        models_endpoint: bool,
        conformance: bool,
        watching: bool,
        path_prefix: str | None,
        warming: Warming,
    ) -> None:
        self._pools = pools
        self._encoder = encoder
        self._fallbacks = fallbacks
        self._metrics = metrics
        self._tracer = tracer
        self._explain = explain
        self._scores = scores
        self._models_endpoint = models_endpoint
        self._conformance = conformance
        self._renamer = Renamer(pools, metrics)
        self._report_modes = ReportModes(pools, metrics)
        self._watching = watching
        self._path_prefix = path_prefix
        self._warming = warming
        self._responses = Responses()
        self._once = LogOnce(logger)
        self._turns = itertools.count()

    async def pick(
        self, request: Request, beyond: str | None = None, patience: Patience = no_patience
    ) -> tuple[Pick, Placed] | Refusal | Reply | None:
        """Endpoints for the request, best first, and what must be told how it went on.

        beyond: a limit that the request is beyond: it is routed by load, for this reason. patience:
        is asked before it waits for its turn.

        None where nothing but the proxy itself can place it any more.
        """
        if self._path_prefix is not None:
            request = replace(request, path=request.path.removeprefix(self._path_prefix))
        if self._models_endpoint and asks_for_models(request):
            self._metrics.replies.labels("models").inc()
            return list_models(self._pools())
        rewritten: Request | None = None
        renamed: Renamed | None = None
        try:
            rewritten = await self._report_modes.remove(request)
            renamed = await self._renamer.rename(rewritten or request)
        except Exception as fault:
            self._fault("rewrite", fault)
        if renamed is not None:
            rewritten = renamed.request
        outcome = await self._route(rewritten or request, beyond, patience)
        if rewritten is None or not isinstance(outcome, tuple):
            return outcome
        pick, placed = outcome
        return renamed.finish(pick) if renamed else replace(pick, body=rewritten.body), placed

    async def _route(
        self, request: Request, beyond: str | None, patience: Patience
    ) -> tuple[Pick, Placed] | Refusal | None:
        stages = Stages()
        encoded: Encoded | None = None
        reason = ""
        answerer: Answerer | None = None
        try:
            if beyond is not None:
                raise Unroutable(beyond)
            encoded = await self._encoder.encode(request, stages)
        except BadRequest as bad:
            return self._refuse(Refusal(bad.status, bad.code, str(bad)))
        except Unroutable as unknown:
            reason = unknown.reason
            if isinstance(unknown, PreviousResponse):
                answerer = self._responses.find(unknown.response_id)
                reason = "previous_response" if answerer else "previous_response_unknown"
            if reason not in EXPECTED_REASONS:
                self._once.warning(reason, "routed by load: %s", unknown)
        except Exception as fault:  # fail open: a fault of ours must not cost the client anything
            reason = self._fault("encode", fault)
        try:
            try:
                pool = encoded.pool if encoded else await self._pool_by_load(request, answerer)
                asked = self._asked(request, pool, encoded, reason, answerer)
                return await self._placed(asked, stages, patience)
            except Exception as fault:
                if isinstance(fault, (NoEndpoint, Saturated)) or encoded is None:
                    raise
                reason = self._fault("match", fault)
                asked = self._asked(request, encoded.pool, None, reason)
                return self._place(asked, choose(asked, stages, monotonic()), stages)
        except NoEndpoint as none:
            return self._refuse(Refusal(none.status, none.code, str(none), reason=none.code))
        except Saturated as full:
            return self._refuse(
                Refusal(full.status, full.code, str(full), full.code, full.retry_after_s)
            )
        except Exception as fault:
            self._fault("place", fault)
            return None

    async def _pool_by_load(self, request: Request, answerer: Answerer | None) -> Pool:
        """The pool of a request that could not be looked up."""
        pools = self._pools()
        if answerer and (pool := pools.named(answerer.pool)):
            return pool
        model = None
        if len(pools.all) > 1:
            with suppress(Unroutable):
                model = await self._encoder.model_of(request)
        return pools.fallback(request, model)

    def _fault(self, where: str, fault: Exception) -> str:
        """Count it, say once what it was (its text may hold the prompt's), and give the reason."""
        self._metrics.errors.labels(where).inc()
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        self._once.warning(
            f"{where} {place}", "%s at %s: routed by load", type(fault).__name__, place
        )
        return "internal_error"

    def _refuse(self, refusal: Refusal) -> Refusal:
        self._metrics.refusals.labels(refusal.code).inc()
        return refusal

    def _asked(
        self,
        request: Request,
        pool: Pool,
        encoded: Encoded | None,
        reason: str,
        answerer: Answerer | None = None,
    ) -> Asked:
        number = next(self._turns)
        override = override_of(pool.config, request.headers)
        conformance = self._conformance
        return Asked(
            request, pool, encoded, reason, answerer, number, monotonic(), conformance, override
        )

    async def _placed(
        self, asked: Asked, stages: Stages, patience: Patience
    ) -> tuple[Pick, Placed]:
        """Placed at once, or when it is its turn where it has to wait and may."""
        line = asked.pool.line
        if asked.encoded:
            came_back(asked.pool, asked.encoded.chains)
        choice = choose(asked, stages, monotonic())
        may_wait = line is not None and asked.override.waits
        if line is None or not may_wait or not line.holds(choice):
            return self._place(asked, choice, stages)
        shed(asked.pool.config, choice.ranking.best)  # now, and not after it has waited
        if not await patience(line.max_wait_s):
            return self._place(asked, choice, stages)
        began = time_ns()

        def again() -> Choice:
            return choose(asked, Stages(), monotonic())

        def place(last: Choice) -> tuple[Pick, Placed]:
            stages.ended("wait", began)
            return self._place(asked, last, stages)

        return await line.wait(choice, again, place, lambda outcome: outcome[1].ended())

    def _place(self, asked: Asked, choice: Choice, stages: Stages) -> tuple[Pick, Placed]:
        request, pool, encoded, reason = asked.request, asked.pool, asked.encoded, asked.reason
        now, ranking, tokens = monotonic(), choice.ranking, asked.tokens
        best = ranking.best
        chains = encoded.chains if encoded else ()
        shed(pool.config, best)
        if pool.admission is not None and encoded:
            admit(pool.admission, chains, pool.capacity_tokens, choice.view.utilisation, now)
        pool.outlook.crowds.placed(choice.prefix, ranking, now)
        if choice.session:
            pool.sessions.went(choice.session, best.instance)
        uncached = float(choice.guess if tokens is None else tokens - best.cached_tokens)
        order = _order(ranking, self._fallbacks)
        placed = Placed(
            pool,
            best.instance,
            best.endpoint,
            order,
            chains,
            encoded.secret if encoded else b"",
            uncached,
            self._metrics,
            encoded.tenant if encoded else "",
            hint_of(asked, choice.session, self._metrics),
        )
        placed.start([found.get(best.instance, Depths(0, 0)) for found in choice.known], now)
        self._count(pool, encoded, ranking, reason, stages)
        if encoded and pool.config.warm_up is not None:
            self._warming.picked(request, encoded, choice)
        has_id = self._watching and request.path.partition("?")[0] == PATH
        if has_id:
            placed.watch(self._responses)
        return Pick(
            endpoints=order,
            headers={
                **self._trace(request, pool, encoded, ranking, reason, stages),
                **pool.headers_of(best.instance),
            },
            metadata={SCORES: reasons.scores(ranking)} if self._scores else {},
            answer_headers={
                **(reasons.answer_headers(tokens, ranking, reason) if self._explain else {}),
                **self._overridden(asked, best),
            },
            watch_answer=has_id or (self._watching and placed.reads_answer),
        ), placed

    def _overridden(self, asked: Asked, best: Score) -> dict[str, str]:
        """Count what became of the operator's header, and say it where picks are explained."""
        if asked.override is NO_OVERRIDE:
            return {}
        outcome = asked.override.outcome(asked.pool.members.of(best.instance))
        self._metrics.overrides.labels(asked.pool.name, outcome).inc()
        return {"x-homing-override": outcome} if self._explain else {}

    def _count(
        self, pool: Pool, encoded: Encoded | None, ranking: Ranking, reason: str, stages: Stages
    ) -> None:
        metrics = self._metrics
        metrics.pick(pool.name, ranking.why if encoded else "load", reason).inc()
        if encoded:
            tokens, cached, size = metrics.prompt(pool.name)
            tokens.inc(encoded.tokens)
            cached.inc(ranking.best.cached_tokens)
            size.observe(encoded.tokens)
        for name, start, end in stages.spans:
            metrics.stage(name).observe((end - start) / 1e9)

    def _trace(
        self,
        request: Request,
        pool: Pool,
        encoded: Encoded | None,
        ranking: Ranking,
        reason: str,
        stages: Stages,
    ) -> dict[str, str]:
        """The trace headers to pass upstream; none where tracing is off."""
        if self._tracer is None:
            return {}
        tokens = encoded.tokens if encoded else None
        return self._tracer.pick(
            request.headers,
            stages,
            {"homing.pool": pool.name, **reasons.attributes(tokens, ranking, reason)},
        )


def _order(ranking: Ranking, most: int) -> tuple[Endpoint, ...]:
    """The endpoints to try, best first, each once: ranks behind one port share theirs."""
    order: list[Endpoint] = []
    for score in ranking.scores:
        if len(order) == most:
            break
        if score.endpoint not in order:
            order.append(score.endpoint)
    return tuple(order)
