"""What was touched when: entries by stamp, the oldest at hand."""

from collections import deque
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

_AHEAD = 64


class Order(Generic[T]):
    """Stamp → entry. Stamps are added in rising order, so the dict's own order is theirs.

    An entry may be replaced under its stamp and removed at any time; a removed stamp must not come
    back. A dict skips its removed entries one by one, so the oldest stamps are read many at a time:
    `oldest` is O(1) on average.
    """

    __slots__ = ("_ahead", "entries")

    def __init__(self) -> None:
        self.entries: dict[int, T] = {}
        self._ahead: deque[int] = deque()

    def oldest(self) -> int:
        """The oldest stamp that has an entry; 0 if there is none."""
        entries, ahead = self.entries, self._ahead
        while ahead and ahead[0] not in entries:
            ahead.popleft()
        if not ahead:
            ahead.extend(islice(entries, _AHEAD))
        return ahead[0] if ahead else 0

    def clear(self) -> None:
        """Forget all entries."""
        self.entries = {}
        self._ahead.clear()
