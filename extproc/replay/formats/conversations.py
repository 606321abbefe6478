"""Which conversation a request goes on with: by the blocks that it repeats, or by its name."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

MOST_BLOCKS = 200_000
"""Blocks that are remembered, those that came last: about 400 bytes each."""


class Conversations:
    """The latest conversation of every block."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
        self._count = 0

    def of(self, blocks: Sequence[Hashable], noted: Sequence[Hashable]) -> tuple[int, int]:
        """(conversation, turn) of a request, from 1 and 0.

        blocks: by which it may go on with one, root first. noted: by which the next may go on with
        it: none that unrelated prompts share.
        """
        known = self._of
        home = next((known[block] for block in reversed(blocks) if block in known), None)
        if home is None:
            self._count += 1
            home = (self._count, -1)
        here = home[0], home[1] + 1
        for block in noted:
            known[block] = here
            known.move_to_end(block)
        while len(known) > MOST_BLOCKS:
            known.popitem(last=False)
        return here
