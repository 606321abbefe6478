"""Aliases on the way to engines that do not know them: out of the request, into the answer."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from extproc.prompt import answer_renamer, find_model
from extproc.serve.pools import Pools
from extproc.stream import BodyRewriter, Pick, Request
from extproc.telemetry import Metrics

INLINE_BODY_BYTES = 256 * 1024
"""Bodies up to here are looked through on the event loop, a millisecond or two; larger ones in a
thread."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A request as it is forwarded and hashed, and the alias that its client used."""

    request: Request
    alias: str
    metrics: Metrics

    def finish(self, pick: Pick) -> Pick:
        """The pick that sends the rewritten body, and has the answer name the alias."""
        return replace(
            pick,
            body=self.request.body,
            # The name cannot be found in an answer that is compressed.
            headers={**pick.headers, "accept-encoding": "identity"},
            rewrite_answer=partial(_answer_rewriter, self.alias, self.metrics),
        )


def _answer_rewriter(
    alias: str, metrics: Metrics, headers: Mapping[str, str]
) -> BodyRewriter | None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        metrics.model_rewrites.labels("answer_encoded").inc()
        return None
    renamer = answer_renamer(headers.get("content-type", ""), alias)
    if renamer is not None:
        metrics.model_rewrites.labels("answer").inc()
    return renamer


class Renamer:
    """Puts the real name into requests that give an alias, where the configuration says so."""

    def __init__(self, pools: Callable[[], Pools], metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics

    async def rename(self, request: Request) -> Renamed | None:
        """The request with its body rewritten; None where it is forwarded as it came.

        Not where the body was not seen, so there the engine has to know the alias.
        """
        if not (self._pools().renaming and request.body):
            return None
        if len(request.body) <= INLINE_BODY_BYTES:
            return self._rename(request, request.body)
        return await asyncio.to_thread(self._rename, request, request.body)

    def _rename(self, request: Request, body: bytes) -> Renamed | None:
        found = find_model(body)
        if found is None:
            return None
        name = self._pools().forwarded_name(request, found.name)
        if name is None:
            return None
        self._metrics.model_rewrites.labels("request").inc()
        rewritten = replace(request, body=found.replaced(body, name))
        return Renamed(rewritten, found.name, self._metrics)
