"""The admin port: health, readiness, metrics and what is known, over HTTP. No text of any body."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import monotonic

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from extproc.config.addresses import UNIX_PREFIX, split_endpoint
from extproc.errors import ConfigError
from extproc.index import dump, render
from extproc.serve.pool import Pool
from extproc.serve.process import Processor
from extproc.telemetry import Metrics

MOST_EDGES = 10_000
"""Of one dump: it is made at once, on the event loop."""


class Admin:
    """An HTTP server for operators: bind it where only they reach it."""

    def __init__(
        self,
        metrics: Metrics,
        processor: Processor,
        pools: Callable[[], Sequence[Pool]],
        ready: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._processor = processor
        self._pools = pools
        self._ready = ready
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get("/pools", self._describe)
        app.router.add_get("/pools/{name}/index", self._index)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, listen: str) -> None:
        """Bind and serve. Raises ConfigError where the address cannot be bound."""
        await self._runner.setup()
        site: web.BaseSite
        if listen.startswith(UNIX_PREFIX):
            site = web.UnixSite(self._runner, listen.removeprefix(UNIX_PREFIX))
        else:
            site = web.TCPSite(self._runner, *split_endpoint(listen))
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"admin: cannot bind {listen}: {error.strerror}") from None

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="not ready: models are loading, or draining\n")

    async def _scrape(self, _: web.Request) -> web.Response:
        # A pool that a reload took away has no numbers, nor has a state that no stream is in.
        self._metrics.streams.clear()
        for state, count in self._processor.states().items():
            self._metrics.streams.labels(state).set(count)
        metrics = self._metrics
        by_pool = (metrics.in_flight, metrics.index_blocks)
        by_reason = (metrics.index_evicted, metrics.index_refused)
        for gauge in (*by_pool, *by_reason):
            gauge.clear()
        for pool in self._pools():
            stats = pool.index.stats()
            for gauge, value in zip(by_pool, (pool.load.in_flight, stats.held), strict=True):
                gauge.labels(pool.name).set(value)
            for gauge, counts in zip(by_reason, (stats.evicted, stats.refused), strict=True):
                for reason, count in counts.items():
                    gauge.labels(pool.name, reason).set(count)
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST},
        )

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response([pool.describe(monotonic()) for pool in self._pools()])

    async def _index(self, request: web.Request) -> web.Response:
        """The index in numbers; with `dump=json` or `dump=tree` its edges too, `limit` at most."""
        pool = next((p for p in self._pools() if p.name == request.match_info["name"]), None)
        if pool is None:
            return web.json_response({"error": "no such pool"}, status=404)
        form = request.query.get("dump")
        if form is None:
            digest = f"{pool.index.digest:016x}"
            return web.json_response({"digest": digest, **asdict(pool.index.stats())})
        limit = request.query.get("limit", str(MOST_EDGES))
        if not limit.isdecimal() or form not in ("json", "tree"):
            return web.json_response({"error": "dump is json or tree, limit a number"}, status=400)
        if pool.index.stats().edges > MOST_EDGES and "force" not in request.query:
            return web.json_response(
                {"error": f"more than {MOST_EDGES} edges: a dump holds up requests; force does it"},
                status=409,
            )
        # Keys stay in the process: what is shown is short and keyed with the pool's secret.
        secret = int.from_bytes(pool.secret[:8])
        edges = dump(pool.index, secret, min(int(limit), MOST_EDGES))
        if form == "tree":
            return web.Response(text=render(edges) + "\n")
        return web.json_response(edges)
