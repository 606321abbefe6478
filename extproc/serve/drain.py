"""How a process goes away while proxies use it: nobody is cut, and nobody is waited for for ever.

    not ready ─▶ delay ─▶ no new streams; each ends when settled ─▶ timeout ─▶ what waits goes on

Proxies first get the time to notice. Then a stream is ended, cleanly, once nothing of ours is
wanted any more: an answer that streams for an hour goes on without its stream. At the time limit
what is held is let go without a pick, and every stream ends that loses nothing by it. What is left
then are bodies that pass through this process, chunk by chunk (FULL_DUPLEX_STREAMED): ended cleanly
they would be cut unseen, so they end with an error.
"""

import asyncio
import logging

from extproc.config import Drain
from extproc.serve.process import Leave, Processor
from extproc.serve.server import Server

logger = logging.getLogger("homing.serve")

LET_GO_S = 2.0
"""How long what was held may take on its way out."""


async def drain(
    server: Server, processor: Processor, times: Drain, delay: bool, hurry: asyncio.Event
) -> None:
    """Bring the open streams to their ends; returns when none is open, or time is up.

    delay: whether proxies use this process, so that they must notice first.
    hurry: setting it ends the draining at once.
    """
    await server.not_ready()
    if delay:
        logger.info("draining: not ready, taking new streams for %g s", times.delay_s)
        await _first(times.delay_s, hurry)
    server.refuse_new()
    for leave, limit_s in ((Leave.SETTLED, times.timeout_s), (Leave.SAFE, LET_GO_S)):
        logger.info("draining: %d open streams", processor.open_streams)
        processor.leave(leave)
        if await _first(limit_s, hurry, processor.idle):
            break
    if processor.open_streams:
        logger.warning("draining: cut %d streams", processor.open_streams)


async def _first(limit_s: float, *events: asyncio.Event) -> bool:
    """Wait for one of the events; False where the time was over before."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    done, pending = await asyncio.wait(
        waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
    )
    for each in pending:
        each.cancel()
    return bool(done)
