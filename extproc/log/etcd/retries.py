"""How long to wait before something is tried again."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

FIRST_S = 0.05
LONGEST_S = 1.0
"""Short, because what etcd's return is waited for is cheap to ask."""


class Backoff:
    """Waits longer each time, up to LONGEST_S, and not all replicas the same."""

    def __init__(self) -> None:
        self._next = FIRST_S

    def reset(self) -> None:
        """It worked."""
        self._next = FIRST_S

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """Something that works for as long as it does: it did if that was a while."""
        started = monotonic()
        try:
            yield
        finally:
            if monotonic() - started > LONGEST_S:
                self.reset()

    async def wait(self) -> None:
        """Before the next try."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._next = min(2 * self._next, LONGEST_S)
