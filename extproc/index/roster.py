"""The instances of a pool, by name and by their place in the masks."""

from extproc.index.cover import ones
from extproc.index.instance import Instance
from extproc.terms import InstanceId

_GROUPS = 4096
"""Masks whose names are remembered."""


class Roster:
    """Who has joined. A slot is an instance's bit in the masks of all edges.

    slots: slot → instance, None where it is free or its edges are still to be swept. names: slot →
    name of the last instance there. live: mask of the slots in use.
    """

    def __init__(self) -> None:
        self.by_name: dict[InstanceId, Instance] = {}
        self.slots: list[Instance | None] = []
        self.names: list[InstanceId] = []
        self.live = 0
        self._free: list[int] = []
        self._groups: dict[int, tuple[InstanceId, ...]] = {}

    def place(self, name: InstanceId, block_size: int, endpoint: str) -> Instance:
        """A new instance, empty, in a free slot."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self.slots)
            self.slots.append(None)
            self.names.append(name)
        self.names[slot] = name
        instance = Instance(name, slot, block_size, endpoint)
        self.slots[slot] = instance
        self.by_name[name] = instance
        self.live |= instance.bit
        return instance

    def remove(self, instance: Instance) -> None:
        """It is no longer there; its slot stays taken until `free`."""
        del self.by_name[instance.name]
        self.slots[instance.slot] = None
        self.live ^= instance.bit
        self._groups.clear()

    def free(self, mask: int) -> None:
        """No edge names these slots any more."""
        self._free.extend(ones(mask))

    def group(self, mask: int) -> tuple[InstanceId, ...]:
        """The names of a mask, remembered: the same few masks are met again and again."""
        names = self._groups.get(mask)
        if names is None:
            if len(self._groups) >= _GROUPS:
                self._groups.clear()
            names = self._groups[mask] = tuple(self.names[slot] for slot in ones(mask))
        return names
