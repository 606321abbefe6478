"""Prompts that were routed to an instance of late: they explain where its events begin."""

import sys
from array import array
from collections import deque
from typing import Final

from xxhash import xxh3_64_intdigest

from extproc.terms import BlockKey, InstanceId, PackedKeys

KEPT: Final = 32
"""Prompts of each instance."""

MOST_INSTANCES: Final = 1024

LOOKS: Final = 1024
"""Blocks that one question looks at, newest prompts and their ends first: 0.3 ms."""


class Routed:
    """Of one pool; kept only for instances whose events do not say all that they hold."""

    def __init__(self) -> None:
        self._prompts: dict[InstanceId, deque[PackedKeys]] = {}

    def add(self, instance: InstanceId, keys: PackedKeys) -> None:
        """A prompt went there."""
        if instance not in self._prompts and len(self._prompts) >= MOST_INSTANCES:
            del self._prompts[next(iter(self._prompts))]
        self._prompts.setdefault(instance, deque(maxlen=KEPT)).append(keys)

    def parent_of(self, instance: InstanceId, ids: bytes) -> BlockKey | None:
        """The key of the block before the one with these tokens, if a prompt has both.

        A block's key is a hash of its tokens with that key, so that it fits is no accident.
        """
        looks = LOOKS
        for prompt in reversed(self._prompts.get(instance, ())):
            keys = array("Q", prompt)
            if sys.byteorder == "big":
                keys.byteswap()
            for at in range(len(keys) - 1, 0, -1):
                if xxh3_64_intdigest(ids, keys[at - 1]) == keys[at]:
                    return BlockKey(keys[at - 1])
                looks -= 1
                if not looks:
                    return None
        return None
