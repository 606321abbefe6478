"""The admin port: health, readiness, metrics and what is known, over HTTP. No text of any body."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from ipaddress import ip_address
from time import monotonic

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from extproc.config.addresses import UNIX_PREFIX, split_endpoint
from extproc.errors import ConfigError
from extproc.index import FOLD_VERSION, Cleared, EdgeRow, Source, overview, rows
from extproc.log import fingerprint
from extproc.serve.engines import show_instances
from extproc.serve.pool import Pool
from extproc.serve.process import Processor
from extproc.telemetry import Metrics
from extproc.terms import InstanceId

PAGE_PLACES = 4096
"""Most places of the index that one page of edges is made from."""

PAGE_HOLDERS = 8192
"""Holders beyond which a page ends: about half a megabyte."""

DIGEST_SHIFT = 12
"""Bits of a digest that the metric leaves out: a sample is a double, exact up to 2^53."""

SLICE_PLACES = 16
"""Places that are looked at before requests get their turn: under 2 ms with 64 holders each."""


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
        metrics.fold_version.set(FOLD_VERSION)
        self._processor = processor
        self._pools = pools
        self._ready = ready
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get("/pools", self._describe)
        app.router.add_get("/pools/{name}/index", self._index)
        app.router.add_get("/pools/{name}/index/digests", self._digests)
        app.router.add_get("/pools/{name}/index/edges", self._edges)
        app.router.add_post("/pools/{name}/index/clear", self._clear)
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
            cold = [pool.name for pool in self._pools() if not pool.log.warm(pool.name)]
            # Serving all the same: what it does not know costs prefill, not requests.
            said = f"ok, but cold, its log was not read yet: {', '.join(cold)}" if cold else "ok"
            return web.Response(text=f"{said}\n")
        return web.Response(
            status=503, text="not ready: models or the index are loading, or draining\n"
        )

    async def _scrape(self, _: web.Request) -> web.Response:
        # A pool that a reload took away has no numbers, nor has a state that no stream is in.
        self._metrics.streams.clear()
        for state, count in self._processor.states().items():
            self._metrics.streams.labels(state).set(count)
        metrics = self._metrics
        show_instances(self._pools(), metrics, monotonic())
        by_pool = (metrics.in_flight, metrics.in_flight_elsewhere, metrics.index_blocks)
        digest = (metrics.index_digest, metrics.index_digest_revision)
        by_reason = (metrics.index_evicted, metrics.index_refused)
        for gauge in (*by_pool, *digest, *by_reason):
            gauge.clear()
        for pool in self._pools():
            stats = pool.index.stats()
            load = pool.load
            counts = (load.in_flight, load.elsewhere(monotonic()), stats.held)
            for gauge, value in zip(by_pool, counts, strict=True):
                gauge.labels(pool.name).set(value)
            for revision, value in pool.digests.recent()[-1:]:
                metrics.index_digest.labels(pool.name).set(value >> DIGEST_SHIFT)
                metrics.index_digest_revision.labels(pool.name).set(revision)
            for gauge, found in zip(by_reason, (stats.evicted, stats.refused), strict=True):
                for reason, count in found.items():
                    gauge.labels(pool.name, reason).set(count)
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST},
        )

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response([pool.describe(monotonic()) for pool in self._pools()])

    async def _index(self, request: web.Request) -> web.Response:
        """The index in numbers, and what each instance holds."""
        pool = self._pool(request)
        return _json(
            {
                **asdict(pool.index.stats()),
                **overview(pool.index),
                "revision": pool.log.revision(pool.name),
                "fold": FOLD_VERSION,
            }
        )

    async def _digests(self, request: web.Request) -> web.Response:
        """Recent digests by revision, to be compared with those of another replica.

        keyed: differs where the pool's secrets do; then nothing else can be compared.
        """
        pool = self._pool(request)
        return _json(
            {
                "fold": FOLD_VERSION,
                "keyed": fingerprint(pool.secret),
                "digests": [[at, f"{digest:016x}"] for at, digest in pool.digests.recent()],
            }
        )

    async def _edges(self, request: web.Request) -> web.Response:
        """Some edges from the place `from` on, and the place to go on `from`; 0 at the end.

        Made in slices. Keys stay in the process: blocks are named by a hash with the secret.
        """
        pool = self._pool(request)
        start = request.query.get("from", "1")
        if not start.isdecimal() or not 0 < (at := int(start)) < 2**63:
            raise web.HTTPBadRequest(text="from is a place that a page named\n")
        secret = int.from_bytes(pool.secret[:8])
        stop, holders = at + PAGE_PLACES, 0
        found: list[EdgeRow] = []
        while 0 < at < stop and holders < PAGE_HOLDERS:
            piece, at = rows(pool.index, secret, at, SLICE_PLACES)
            found += piece
            holders += sum(len(row["holders"]) for row in piece)
            await asyncio.sleep(0)
        return _json({"facts": pool.index.position, "edges": found, "next": at})

    async def _clear(self, request: web.Request) -> web.Response:
        """Forget what an instance holds: a fact like any other, so in all replicas.

        From this machine only, and with a JSON body, which no web page can send elsewhere.
        """
        if not _is_local(request.remote):
            raise web.HTTPForbidden(text="only from the machine that Homing runs on\n")
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the body is JSON\n")
        pool = self._pool(request)
        try:
            asked = msgspec.json.decode(await request.read(), type=_Clear)
        except msgspec.DecodeError:
            raise web.HTTPBadRequest(text='the body is {"instance": NAME}\n') from None
        known = {instance.name for instance in pool.index.instances()}
        if asked.instance not in known:
            names = ", ".join(sorted(known)) or "none"
            raise web.HTTPNotFound(text=f"no such instance; there are: {names}\n")
        blocks = pool.index.held_blocks(asked.instance)
        pool.append([Cleared(asked.instance, Source.CORRECTION)])
        return _json({"instance": asked.instance, "blocks": blocks})

    def _pool(self, request: web.Request) -> Pool:
        """The pool that the path names."""
        for pool in self._pools():
            if pool.name == request.match_info["name"]:
                return pool
        raise web.HTTPNotFound(text="no such pool\n")


class _Clear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance: InstanceId


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _is_local(remote: str | None) -> bool:
    """Whether a peer is on this machine; a unix socket's has no address."""
    if not remote:
        return True
    address = ip_address(remote.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
