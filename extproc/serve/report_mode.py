"""Bodies without `kv_cache_report_mode`, for pools whose engines' copies of blocks are counted."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from extproc.errors import Unroutable
from extproc.prompt import find_model, without_report_mode
from extproc.serve.pool import Pool
from extproc.serve.pools import Pools
from extproc.stream import Request
from extproc.telemetry import Metrics

INLINE_BODY_BYTES = 1024 * 1024
"""Bodies up to here are looked through on the event loop, in 0.1 ms; larger ones in a thread."""


class ReportModes:
    """Takes the field out of requests, where the configuration does not keep it."""

    def __init__(self, pools: Callable[[], Pools], metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics

    async def remove(self, request: Request) -> Request | None:
        """The request with its body rewritten; None where it is forwarded as it came."""
        body = request.body
        if not body or not any(map(_counts_copies, self._pools().all)):
            return None
        if len(body) <= INLINE_BODY_BYTES:
            return self._remove(request, body)
        return await asyncio.to_thread(self._remove, request, body)

    def _remove(self, request: Request, body: bytes) -> Request | None:
        rewritten = without_report_mode(body)
        if rewritten is None:
            return None
        model = find_model(body)
        try:
            pool = self._pools().of(request, model.name if model else "")
        except Unroutable:
            pool = self._pools().fallback(request, None)
        if not _counts_copies(pool):
            return None
        self._metrics.report_modes.labels(pool.name).inc()
        return replace(request, body=rewritten)


def _counts_copies(pool: Pool) -> bool:
    events = pool.config.events
    return events is not None and not events.keep_report_mode
