"""A map that forgets: bounded in bytes, in two generations."""

from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """Keeps at least what was put or kept last, up to half of `max_bytes`; never more than all.

    When the young generation has filled its half, the old one is dropped and the young one becomes
    old. So nothing is moved on a read: O(1), and readers need no lock. Costs are the caller's.
    """

    def __init__(self, max_bytes: int) -> None:
        self._half = max_bytes // 2
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}
        self._young_bytes = 0
        self._old_bytes = 0
        self._lock = Lock()

    @property
    def size(self) -> int:
        """Bytes kept now, by the costs given."""
        return self._young_bytes + self._old_bytes

    def get(self, key: K) -> V | None:
        """The value, or None where it is not known (any more)."""
        kept = self._young.get(key) or self._old.get(key)
        return kept[0] if kept else None

    def is_young(self, key: K) -> bool:
        """Whether the value outlives the next change of generations."""
        return key in self._young

    def put(self, key: K, value: V, cost: int) -> None:
        """Keep a value of `cost` bytes; one that alone exceeds the bound is not kept."""
        if cost > self._half:
            return
        with self._lock:
            replaced = self._young.pop(key, None)
            if replaced:
                self._young_bytes -= replaced[1]
            if self._young_bytes + cost > self._half:
                self._old, self._old_bytes = self._young, self._young_bytes
                self._young, self._young_bytes = {}, 0
            self._young[key] = (value, cost)
            self._young_bytes += cost
