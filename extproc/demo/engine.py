"""A simulated engine: a likeness of vLLM 0.32 that needs no GPU and no weights.

    python -m extproc.demo.engine --port 8001 --name engine-1

It tokenizes as the real one would, has its block-level prefix cache with its eviction, takes the
time that a prefill and a decode take, and reports what it did in `usage` and at `/metrics`. Only
the answers make no sense: they are words drawn from a hash of the prompt.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from aiohttp import web
from cyclopts import App, Parameter, validators

from extproc.demo.api import EngineApi
from extproc.demo.kv_events import publishing
from extproc.demo.prefix_cache import RESERVED_BLOCKS, Event, Listener, PrefixCache
from extproc.demo.scheduler import Timing, VirtualEngine
from extproc.errors import ConfigError, HomingError
from extproc.prompt import ServedModel

DEMO_MODEL = "demo-model"
DEMO_TOKENIZER = Path(__file__).parent / "tokenizer"

KEEPALIVE_S = 5.0
"""How long a connection may be idle: uvicorn's default, under vLLM."""

SHUTDOWN_S = 1.0
"""How long running answers may go on after SIGTERM."""

_Positive = Parameter(validator=validators.Number(gt=0))
_Port = Parameter(validator=validators.Number(gte=0, lte=65_535))
_NotNegative = Parameter(validator=validators.Number(gte=0))


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class EngineSettings:
    """A simulated engine.

    Parameters
    ----------
    name
        Sent as `x-served-by` with every answer.
    host
        Address to listen on.
    port
        Port to listen on; 0 is any free one.
    model
        Name of the model that is served.
    tokenizer
        Folder with tokenizer.json and tokenizer_config.json.
    block_size
        Tokens a block.
    blocks
        Blocks of the KV cache; one of them is reserved, as in vLLM.
    prefill_tokens_per_s
        Uncached prompt tokens computed in a second.
    request_ms
        What every prefill takes besides, in milliseconds.
    decode_ms
        Time from one token to the next, in milliseconds.
    decode_ms_per_running
        What every running request adds to it, in milliseconds.
    answer_tokens
        Usual length of an answer that nothing cuts.
    max_model_len
        Longest prompt and answer together, in tokens; what the cache holds if not given.
    max_num_seqs
        Most requests that run at once.
    kv_events_port
        Port on which KV-cache events are published; none are if not given.
    kv_events_replay_port
        Port on which the last of them can be had again; they cannot if not given.
    """

    name: str = "engine"
    host: str = "127.0.0.1"
    port: Annotated[int, _Port] = 8000
    model: str = DEMO_MODEL
    tokenizer: Path = DEMO_TOKENIZER
    block_size: Annotated[int, _Positive] = 16
    blocks: Annotated[int, Parameter(validator=validators.Number(gt=RESERVED_BLOCKS))] = 4096
    prefill_tokens_per_s: Annotated[float, _Positive] = 16_000.0
    request_ms: Annotated[float, _NotNegative] = 20.0
    decode_ms: Annotated[float, _NotNegative] = 12.0
    decode_ms_per_running: Annotated[float, _NotNegative] = 0.2
    answer_tokens: Annotated[int, _Positive] = 48
    max_model_len: Annotated[int, _Positive] | None = None
    max_num_seqs: Annotated[int, _Positive] = 256
    kv_events_port: Annotated[int, _Port] | None = None
    kv_events_replay_port: Annotated[int, _Port] | None = None

    @property
    def timing(self) -> Timing:
        """How fast it is."""
        return Timing(
            self.prefill_tokens_per_s, self.request_ms, self.decode_ms, self.decode_ms_per_running
        )

    def arguments(self) -> list[str]:
        """The command line that gives these settings."""
        given = ((f"--{f.name.replace('_', '-')}", getattr(self, f.name)) for f in fields(self))
        return [part for flag, value in given if value is not None for part in (flag, str(value))]


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine that listens."""

    engine: VirtualEngine
    host: str
    port: int

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@asynccontextmanager
async def serving(
    settings: EngineSettings, listener: Listener | None = None
) -> AsyncIterator[Serving]:
    """Serve an engine in this event loop as long as the block runs.

    listener: told of every block that the cache stores and removes.

    Raises ConfigError where the tokenizer cannot be used, or nothing can listen there.
    """
    async with _listening(settings, listener) as heard, _serving(settings, heard) as running:
        yield running


@asynccontextmanager
async def _listening(
    settings: EngineSettings, listener: Listener | None
) -> AsyncIterator[Listener | None]:
    """Who is to be told what the cache does: the given listener, and who publishes its events."""
    if settings.kv_events_port is None:
        yield listener
        return
    async with publishing(
        settings.host, settings.kv_events_port, settings.kv_events_replay_port, settings.block_size
    ) as publish:

        def both(event: Event) -> None:
            publish(event)
            if listener is not None:
                listener(event)

        yield both


@asynccontextmanager
async def _serving(settings: EngineSettings, listener: Listener | None) -> AsyncIterator[Serving]:
    cache = PrefixCache(settings.blocks, settings.block_size, listener)
    engine = VirtualEngine(cache, settings.timing, settings.max_num_seqs)
    api = EngineApi(
        engine,
        await asyncio.to_thread(ServedModel.load, settings.model, settings.tokenizer),
        name=settings.name,
        context=min(settings.max_model_len or cache.capacity_tokens, cache.capacity_tokens),
        usual_tokens=settings.answer_tokens,
    )
    # Without cancellation a client that hangs up would keep its blocks to the answer's end.
    runner = web.AppRunner(
        api.application(),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"{settings.name}: cannot listen on {settings.host}:{settings.port}: "
                f"{error.strerror}"
            ) from None
        host, port = runner.addresses[0][:2]
        yield Serving(engine, host, port)
    finally:
        await runner.cleanup()


async def run_engine(settings: EngineSettings, listener: Listener | None = None) -> None:
    """Serve an engine until SIGTERM, SIGINT or cancellation; prints its URL once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, listener) as running:
        print(f"{settings.name} serves {settings.model} on {running.url}", flush=True)
        await stop.wait()


def engine(*, settings: EngineSettings = EngineSettings()) -> None:
    """Run one simulated engine until Ctrl-C: vLLM's API, prefix cache and metrics, no GPU.

    Raises ConfigError as `serving` does.
    """
    asyncio.run(run_engine(settings))


def main() -> int:
    """`python -m extproc.demo.engine`; returns the exit status."""
    app = App(name="python -m extproc.demo.engine", help_format="plaintext")
    app.default(engine)
    try:
        app()
    except HomingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
