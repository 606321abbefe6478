"""What a discovery is, and how it is followed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from extproc.engines.instances import Instance
from extproc.errors import HomingError

logger = logging.getLogger("homing.discovery")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 5.0
"""After a failure a discovery is asked again, each time after twice as long."""

Listed = Callable[[Sequence[Instance]], None]
"""Told all instances there are."""


class DiscoveryError(HomingError):
    """The instances cannot be learnt now. The message is for the log."""


class Discovery(Protocol):
    """Knows which instances a pool has."""

    def watch(self) -> AsyncIterator[Sequence[Instance]]:
        """All instances: at once, and again whenever anything about them has changed.

        Raises DiscoveryError where they cannot be learnt; it is then called anew, and what was
        listed last holds until it says otherwise.
        """
        ...


async def follow(
    name: str,
    discovery: Discovery,
    listed: Listed,
    failed: Callable[[], None],
    first_pause_s: float = FIRST_PAUSE_S,
) -> None:
    """Tell `listed` what the discovery says, for ever; `failed` each time that it cannot.

    name: the pool's, for the log. A failure is logged once until the next success.
    """
    pause, said = first_pause_s, ""
    while True:
        try:
            async for instances in discovery.watch():
                listed(instances)
                if said:
                    logger.info("pool %s: discovery works again", name)
                pause, said = first_pause_s, ""
        except DiscoveryError as error:
            failed()
            if str(error) != said:
                said = str(error)
                for line in said.splitlines():
                    logger.error("pool %s: the instances stay as they are: %s", name, line)
        except Exception as fault:  # one of ours: what was listed last serves
            failed()
            if type(fault).__name__ != said:
                said = type(fault).__name__
                logger.error("pool %s: discovery: %s", name, said)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
