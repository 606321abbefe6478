"""A JSON array of objects, cut into its items but not decoded: most of a body is known already."""

from array import array
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, TypeAlias

import msgspec
from xxhash import xxh3_128_digest

Json: TypeAlias = Any
"""A JSON value as `msgspec` decodes it; its shape is the client's."""

_decode = msgspec.json.Decoder().decode


class RawArray:
    """Items of an array, each a slice of `data`; decoded and hashed only where asked.

    data: the items in order, with commas and blanks between them.

    known: how many leading items were seen in an earlier body, and the digest of all of them.
    """

    __slots__ = ("_data", "_digests", "_known", "_seen", "ends", "starts")

    def __init__(
        self,
        data: bytes,
        starts: "array[int]",
        ends: "array[int]",
        known: int = 0,
        seen: bytes = b"",
    ) -> None:
        self._data = data
        self.starts = starts
        self.ends = ends
        self._known = known
        self._seen = seen
        self._digests: list[bytes] | None = None

    @classmethod
    def of(cls, values: Iterable[Json]) -> "RawArray":
        """The array of these values."""
        return cls._joined([msgspec.json.encode(value) for value in values])

    @classmethod
    def _joined(cls, items: list[bytes]) -> "RawArray":
        ends = array("Q", accumulate(len(item) + 1 for item in items))
        starts = array("Q", (end - len(item) - 1 for end, item in zip(ends, items, strict=True)))
        return cls(b",".join(items), starts, array("Q", (end - 1 for end in ends)))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def size(self) -> int:
        """Bytes of the items."""
        return self.ends[-1] - self.starts[0] if self.ends else 0

    def sizes(self, indices: Iterable[int]) -> int:
        """Bytes of these items."""
        starts, ends = self.starts, self.ends
        return sum([ends[i] - starts[i] for i in indices])

    def decoded(self, indices: Iterable[int] | None = None) -> list[Json]:
        """The values of these items, or of all."""
        data, starts, ends = self._data, self.starts, self.ends
        if indices is None:
            if not ends:
                return []
            values: list[Json] = _decode(b"[%b]" % data[starts[0] : ends[-1]])
            return values
        return [_decode(data[starts[i] : ends[i]]) for i in indices]

    def replaced(self, values: Mapping[int, Json]) -> "RawArray":
        """The array with other values in these places."""
        data, starts, ends = self._data, self.starts, self.ends
        return self._joined(
            [
                msgspec.json.encode(values[i]) if i in values else data[starts[i] : ends[i]]
                for i in range(len(self))
            ]
        )

    def digests(self) -> list[bytes]:
        """Chained digests: the last one stands for all items, the one before for all but one, …

        They go back to the last known item; `all_digests` goes back to the first.
        """
        if self._digests is None:
            self._digests = self._chain(self._known, self._seen)
            if self._known:
                self._digests.insert(0, self._seen)
        return self._digests

    def all_digests(self) -> list[bytes]:
        """The chained digest of items 0 to i, for every i."""
        digests = self.digests()
        return digests if len(digests) == len(self) else self._chain(0, b"")

    def _chain(self, first: int, digest: bytes) -> list[bytes]:
        data, starts, ends = self._data, self.starts, self.ends
        digests = []
        for i in range(first, len(ends)):
            digest = xxh3_128_digest(digest + data[starts[i] : ends[i]])
            digests.append(digest)
        return digests
