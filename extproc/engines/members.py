"""The instances of a pool as they are listed, and what they say of themselves. No I/O."""

import logging
from collections.abc import Sequence

from extproc.engines.conditions import Conditions
from extproc.engines.instances import Instance
from extproc.terms import InstanceId

logger = logging.getLogger("homing.engines")


class Members:
    """Who is in a pool, and how they fare.

    instances: as listed last. conditions: theirs.
    """

    def __init__(self) -> None:
        self.instances: tuple[Instance, ...] = ()
        self.conditions = Conditions()
        self.changes = 0
        """Counts the lists."""
        self.known = False
        """Whether there has been any list: none at all is something else than an empty one."""
        self._by_id: dict[InstanceId, Instance] = {}
        self._misfits: set[InstanceId] = set()

    def set_instances(self, instances: Sequence[Instance]) -> None:
        """These are all there are from now on."""
        self.known = True
        self.changes += 1
        self.conditions.keep(instances)
        self.instances = tuple(instances)
        self._by_id = {one.id: one for one in instances}
        self._misfits &= self._by_id.keys()

    def of(self, instance: InstanceId) -> Instance | None:
        """A listed instance."""
        return self._by_id.get(instance)

    def at(self, endpoint: str, like: InstanceId) -> Instance | None:
        """Who answers at an endpoint a request that was meant for the instance `like`.

        Where ranks share the endpoint the request's header has chosen among them, as for `like`.
        """
        there = [one for one in self.instances if one.endpoint == endpoint]
        meant = self._by_id.get(like)
        rank = meant.rank if meant is not None else None
        return next((one for one in there if one.rank == rank), there[0] if there else None)

    def capacity(self, instance: Instance, block_size: int, assumed: int) -> int | None:
        """Blocks of `block_size` tokens that it can hold.

        As its metrics say, or else its listing, or else as `assumed`; None before its metrics have
        answered. 0 where the engine's own blocks do not add up to such blocks: the index then
        keeps nothing for it.
        """
        condition = self.conditions.of(instance.id)
        cache = condition.cache
        if cache is None:
            asked = instance.metrics is None or condition.told
            return (instance.capacity_blocks or assumed) if asked else None
        if block_size % cache.block_size == 0:
            self._misfits.discard(instance.id)
            return cache.blocks * cache.block_size // block_size
        if instance.id not in self._misfits:
            self._misfits.add(instance.id)
            logger.warning(
                "instance %s has blocks of %d tokens, of which the pool's (%d) are no multiple: "
                "it is routed to by load",
                *(instance.id, cache.block_size, block_size),
            )
        return 0

    def is_misfit(self, instance: InstanceId) -> bool:
        """Whether nothing can be known of what it holds: its blocks do not add up to the pool's."""
        return instance in self._misfits

    def describe(self, instance: Instance, now: float) -> dict[str, object]:
        """A listed instance for the admin port."""
        condition = self.conditions.of(instance.id)
        shown: dict[str, object] = {"state": instance.state, "answers": condition.alive}
        if (reading := condition.reading) is not None:
            shown["engine"] = {
                "running": reading.running,
                "waiting": reading.waiting,
                "cache_usage": reading.usage,
                "asleep": reading.asleep,
                "age_s": round(now - condition.read_at, 3),
                "known": condition.fresh(now),
            }
        return shown
