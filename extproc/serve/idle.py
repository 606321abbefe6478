"""Work that no request waits for: the index's upkeep and the memos' audit, a slice at a time."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from extproc.serve.pool import Pool
from extproc.telemetry import LogOnce, Metrics

logger = logging.getLogger("homing.serve")

PAUSE_S = 0.05
"""Between looks when there is nothing to do."""


class IdleWork:
    """Does what is left whenever the event loop has nothing else to do."""

    def __init__(self, pools: Callable[[], Sequence[Pool]], metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics
        self._once = LogOnce(logger)

    async def run(self) -> None:
        """Until it is cancelled. A slice takes up to 2 ms; requests go between any two."""
        while True:
            try:
                while self._step():  # noqa: ASYNC110 - it works, and lets requests in between
                    await asyncio.sleep(0)
                for pool in self._pools():
                    pool.take_secret()
                    pool.tend()
                    for model in set(pool.models.values()):
                        await asyncio.to_thread(model.audit)
            except Exception as fault:  # requests do not need it, and the next slice may do
                self._metrics.errors.labels("idle").inc()
                self._once.warning(f"{type(fault)}", "idle work: %s", type(fault).__name__)
            await asyncio.sleep(PAUSE_S)

    def _step(self) -> bool:
        """One slice of every pool's; False where nothing is left."""
        left = False
        for pool in self._pools():
            left = pool.index.step() or left
        return left
