"""`homing serve`: builds the parts, starts them, and ends them in order."""

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import uvloop

from extproc import __version__, config, telemetry
from extproc.errors import ConfigError
from extproc.index import PrefixIndex
from extproc.log import FactLog, MemoryLog
from extproc.prompt import ServedModel
from extproc.routing import Utilisation
from extproc.serve.admin import Admin
from extproc.serve.encoder import Encoder
from extproc.serve.picker import Picker
from extproc.serve.pool import Pool
from extproc.serve.process import Processor
from extproc.serve.server import Server
from extproc.stream import StreamSettings
from extproc.telemetry import Metrics, OtlpTracer

logger = logging.getLogger("homing.serve")

HOLD_TIMEOUT_S = 30.0
"""How long a body is waited for before its request goes on without a pick: no time-out of Envoy's
applies while it is held in FULL_DUPLEX_STREAMED."""

DRAIN_S = 30.0
"""How long open streams may go on after SIGTERM."""


class App:
    """One Homing process."""

    def __init__(self, settings: config.Config) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.ready = False
        self._log: FactLog = MemoryLog()
        self.pools = [self._open_pool(listed) for listed in settings.pools]
        tracing = settings.tracing
        self._tracer = OtlpTracer(tracing.otlp_endpoint, tracing.sample_ratio) if tracing else None
        limits = settings.limits
        self._encoder = Encoder(lambda: self.pools, limits.pick_timeout_ms / 1000)
        picker = Picker(
            lambda: self.pools,
            self._encoder,
            fallbacks=3,
            metrics=self.metrics,
            tracer=self._tracer,
            explain=settings.explain,
            conformance=settings.conformance,
        )
        self.processor = Processor(
            picker,
            StreamSettings(max_body_bytes=limits.max_body_bytes, conformance=settings.conformance),
            HOLD_TIMEOUT_S,
            self.metrics,
        )
        self.metrics.streams.set_function(lambda: self.processor.open_streams)
        self.metrics.ready.set_function(lambda: self.ready)
        self._server = Server(self.processor, settings.listen, limits.max_body_bytes)
        self._admin = Admin(self.metrics, lambda: self.pools, lambda: self.ready)

    def _open_pool(self, listed: config.Pool) -> Pool:
        index = PrefixIndex()
        self._log.subscribe(listed.name, lambda _, fact: index.apply(fact))
        pool = Pool(listed, self._log, index, Utilisation(monotonic()))
        pool.configure(listed)
        return pool

    async def start(self) -> int:
        """Serve, load the models off the event loop, and be ready. Returns the ext_proc port."""
        if self.settings.admin:
            await self._admin.start(self.settings.admin)
        port = await self._server.start()
        logger.info("homing %s serves ext_proc on %s", __version__, self.settings.listen)
        await self._load_models()
        self.ready = True
        await self._server.ready()
        logger.info("ready")
        return port

    async def _load_models(self) -> None:
        """One after another in a thread: a tokenizer takes a second of pure computing."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
            for pool in self.pools:
                for listed in pool.config.models:
                    model = await loop.run_in_executor(
                        thread,
                        ServedModel.load,
                        listed.name,
                        listed.tokenizer,
                        listed.chat_template,
                    )
                    for name in (listed.name, *listed.aliases):
                        pool.models[name] = model

    async def stop(self) -> None:
        """Drain: not ready first, then open streams finish, bounded; then the rest."""
        self.ready = False
        await self._server.drain(DRAIN_S)
        await self._admin.stop()
        self._encoder.close()
        if self._tracer:
            self._tracer.shutdown()
        logger.info("stopped")


async def _serve(settings: config.Config) -> None:
    app = App(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    starting = asyncio.ensure_future(app.start())
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
    await stop
    await app.stop()


def run(settings: config.Config, path: Path) -> None:
    """Serve until SIGTERM or SIGINT. path: of the configuration, to name in errors.

    Raises ConfigError where an address cannot be bound or a model's files are wrong.
    """
    telemetry.configure()
    try:
        uvloop.run(_serve(settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
