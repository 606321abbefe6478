"""`homing serve`: builds the parts, starts them, and ends them in order."""

import asyncio
import logging
from functools import partial
from time import monotonic

from extproc import __version__, config
from extproc.index import Bounds, Cleared, Fact, Joined, PrefixIndex, Source
from extproc.log import IndexSnapshots
from extproc.log.pending import Pending
from extproc.prompt import ServedModel
from extproc.routing import Outlook, Speed
from extproc.serve.admin import Admin
from extproc.serve.digests import Digests
from extproc.serve.drain import drain
from extproc.serve.encoder import Encoder
from extproc.serve.engines import Engines
from extproc.serve.factlog import fact_log
from extproc.serve.idle import IdleWork
from extproc.serve.kv_events import KvEvents
from extproc.serve.models import Models
from extproc.serve.picker import Picker
from extproc.serve.pool import Pool
from extproc.serve.pools import Pools
from extproc.serve.process import Processor
from extproc.serve.server import Server
from extproc.serve.shared_load import SharedLoad
from extproc.serve.tls import ServerTls
from extproc.serve.warming import Warming
from extproc.stream import BodyMode, StreamSettings
from extproc.telemetry import Metrics, OtlpTracer
from extproc.terms import InstanceId

logger = logging.getLogger("homing.serve")

RELOADED = frozenset(("pools", "pool_header", "drain", "envoy"))
"""Keys of the configuration that a running process takes over (`envoy` it does not read)."""


class App:
    """One Homing process.

    settings: what is in force. Raises ConfigError where the certificate cannot be used.
    """

    def __init__(self, settings: config.Config) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.ready = False
        self._log = fact_log(settings.log, self.metrics)
        self._idle: asyncio.Future[None] | None = None
        self._events: asyncio.Future[None] | None = None
        self._warm: asyncio.Future[None] | None = None
        self._known: dict[str, Pool] = {}
        self._models = Models(self._model_arrived, self.metrics)
        self.kv_events: KvEvents | None = None
        self._engines = Engines(settings, self.metrics, self._emptied)
        # Requests that come while the models are loaded are routed by load.
        self.pools = [self._configured(listed) for listed in settings.pools]
        self._lookup = Pools(self.pools, settings.pool_header)
        tls = settings.tls
        self.tls = None if tls is None or tls == "off" else ServerTls(tls)
        tracing = settings.tracing
        self._tracer = OtlpTracer(tracing.otlp_endpoint, tracing.sample_ratio) if tracing else None
        limits = settings.limits
        self._encoder = Encoder(
            lambda: self._lookup, limits.pick_timeout_ms / 1000, limits.max_json_depth
        )
        self._warming = Warming(lambda: self.pools, self.metrics)
        picker = Picker(
            lambda: self._lookup,
            self._encoder,
            fallbacks=settings.fallbacks,
            metrics=self.metrics,
            tracer=self._tracer,
            explain=settings.explain,
            scores=settings.scores,
            models_endpoint=settings.models_endpoint,
            conformance=settings.conformance,
            watching=settings.proxy.shows_answers,
            path_prefix=settings.proxy.path_prefix,
            warming=self._warming,
        )
        self.processor = Processor(
            picker,
            _stream_settings(settings),
            limits,
            self.metrics,
        )
        self.metrics.held_bytes.set_function(lambda: self.processor.held_bytes)
        self.metrics.ready.set_function(lambda: self.ready)
        expiry = self.metrics.certificate_expiry
        expiry.set_function(lambda: self.tls.expires.timestamp() if self.tls else 0)
        self._server = Server(self.processor, settings.listen, limits.max_body_bytes, self.tls)
        self._admin = Admin(self.metrics, self.processor, lambda: self.pools, lambda: self.ready)

    async def start(self) -> int:
        """Serve, load the index and the models, and be ready. Returns the ext_proc port.

        Raises ConfigError where an address cannot be bound or a model cannot be loaded.
        """
        if self.settings.admin:
            await self._admin.start(self.settings.admin)
        port = await self._server.start()
        logger.info("homing %s serves ext_proc on %s", __version__, self.settings.listen)
        await self._log.open()
        await self.take(self.settings)
        self.kv_events = KvEvents(lambda: self.pools, self.metrics)
        await self._engines.start()
        self._idle = asyncio.ensure_future(IdleWork(lambda: self.pools, self.metrics).run())
        self._events = asyncio.ensure_future(self.kv_events.run())
        self._warm = asyncio.ensure_future(self._warming.run())
        self.ready = True
        await self._server.ready()
        logger.info("ready")
        return port

    async def take(self, settings: config.Config) -> None:
        """Take over what is RELOADED; what else differs is left as it is.

        The models of before serve until the new ones are loaded. Raises ConfigError where one
        cannot be: nothing has changed then.
        """
        models = await self._models.load(settings.pools)
        # From here on nothing waits: a pick sees all of the old pools or all of the new ones.
        pools = [self._configured(listed) for listed in settings.pools]
        listed_names = {pool.name for pool in pools}
        for gone in (pool for pool in self.pools if pool.name not in listed_names):
            gone.configure(gone.config.model_copy(update={"instances": (), "discovery": None}))
            gone.enrol()
        for pool in pools:
            pool.enrol()
            pool.models = {
                name: models[listed.name]
                for listed in pool.config.models
                if listed.name in models
                for name in listed.names
            }
        self.pools = pools
        self._lookup = Pools(pools, settings.pool_header)
        self._engines.take(pools)
        self.settings = self.settings.model_copy(
            update={key: getattr(settings, key) for key in RELOADED}
        )

    def _model_arrived(self, name: str, model: ServedModel) -> None:
        """A model that is on a hub is here now, or is another one."""
        for pool in self.pools:
            for listed in pool.config.models:
                if listed.name == name:
                    pool.models = pool.models | dict.fromkeys(listed.names, model)

    def _configured(self, listed: config.Pool) -> Pool:
        """The pool of this name, as listed now: one that was gone comes back under its log."""
        name, log = listed.name, self._log
        if (pool := self._known.get(name)) is None:
            bounds = Bounds(listed.index_bytes, listed.tenant_bytes)
            index = PrefixIndex(bounds)
            digests = Digests(index, lambda: log.revision(name))
            snapshots = IndexSnapshots(name, index, lambda: log.secret(name) or b"")

            def apply(revision: int, fact: Fact) -> None:
                digests.apply(revision, fact)
                if type(fact) is Joined or type(fact) is Cleared:
                    self._begun_anew(name, fact)

            log.subscribe(name, apply, digests.reset, snapshots)
            outlook = Outlook(Speed(listed.prefill_rate), monotonic())
            pool = Pool(listed, log, index, digests, outlook, Pending(bounds))
            self._known[name] = pool
            self.metrics.waiting.labels(name).set_function(lambda: len(pool.line or ()))
            share = SharedLoad(outlook, pool.members, partial(log.reads, name))
            log.share(name, share)
        pool.configure(listed)
        pool.take_secret()
        return pool

    def _begun_anew(self, pool: str, fact: Joined | Cleared) -> None:
        """The index forgot an instance; if that was not for its events, they know better."""
        if self.kv_events and not (type(fact) is Cleared and fact.source is Source.EVENT):
            self.kv_events.contradicted(pool, [fact])

    def _emptied(self, pool: Pool, instance: InstanceId) -> None:
        """An engine has begun anew, as its metrics tell."""
        self._warming.emptied(pool, instance)
        if self.kv_events is None or not self.kv_events.emptied(pool.name, instance):
            pool.append([Cleared(instance, Source.CORRECTION)])

    async def drain(self, hurry: asyncio.Event) -> None:
        """Let the open requests end, as `drain` in the configuration says, or until `hurry`."""
        was_ready, self.ready = self.ready, False
        await drain(self._server, self.processor, self.settings.drain, was_ready, hurry)

    async def stop(self) -> None:
        """End now, in order; requests that are still open are cut."""
        self.ready = False
        self._models.close()
        if self._idle:
            self._idle.cancel()
        for task in (self._events, self._warm):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._engines.stop()
        await self._server.stop()
        await self._log.close()
        await self._admin.stop()
        self._encoder.close()
        if self._tracer:
            self._tracer.shutdown()
        logger.info("stopped")


def _stream_settings(settings: config.Config) -> StreamSettings:
    proxy = settings.proxy
    return StreamSettings(
        fallback_request_mode=BodyMode[proxy.request_body_mode],
        fallback_response_mode=BodyMode[proxy.response_body_mode],
        max_body_bytes=settings.limits.max_body_bytes,
        allow_mode_override=proxy.mode_override,
        conformance=settings.conformance,
    )
