"""Block keys one by one → `Held` facts, one for each unbroken chain."""

from array import array
from sys import byteorder

from extproc.index import Held, Source, Tier
from extproc.terms import BlockKey, InstanceId, PackedKeys


class Runs:
    """Collects blocks in the order they came."""

    def __init__(self, instance: InstanceId) -> None:
        self._instance = instance
        self._tier = Tier.GPU
        self._facts: list[Held] = []
        self._keys = array("Q")
        self._parent = BlockKey(0)

    def add(self, key: BlockKey, parent: BlockKey, tier: Tier) -> None:
        """One block and the one before it, 0 for a prompt's first."""
        if not self._keys or self._keys[-1] != parent or self._tier is not tier:
            self._close()
            self._parent, self._tier = parent, tier
        self._keys.append(key)

    def facts(self) -> list[Held]:
        """All of them so far; then it is empty again."""
        self._close()
        facts, self._facts = self._facts, []
        return facts

    def _close(self) -> None:
        if self._keys:
            if byteorder == "big":
                self._keys.byteswap()
            keys = PackedKeys(self._keys.tobytes())
            self._facts.append(Held(self._instance, self._tier, self._parent, keys, Source.EVENT))
            self._keys = array("Q")
