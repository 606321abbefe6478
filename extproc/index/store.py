"""Edges by number."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from extproc.index.edge import Edge

CHUNK = 4096
"""Edges in one of the store's arrays."""


class Store:
    """Edges by id. Arrays of objects, because the collector looks into lists and not into these."""

    def __init__(self) -> None:
        self.chunks: list[npt.NDArray[np.object_]] = []
        self._free: list[int] = []
        self._freed = self._free
        self.end = 1
        """Beyond the largest id."""

    def keep_ids(self, keep: bool) -> None:
        """Whether ids of edges that have gone stay unused: then a new edge's is the largest."""
        self._free = [] if keep else self._freed

    def add(self, edge: Edge) -> None:
        """Give the edge an id."""
        edge_id = self._free.pop() if self._free else self.end
        if edge_id == self.end:
            self.end += 1
            if edge_id // CHUNK == len(self.chunks):
                self.chunks.append(np.empty(CHUNK, np.object_))
        self.chunks[edge_id // CHUNK][edge_id % CHUNK] = edge
        edge.id = edge_id

    def get(self, edge_id: int) -> Edge | None:
        """The edge with this id, None if it has gone."""
        edge: Edge | None = self.chunks[edge_id // CHUNK][edge_id % CHUNK]
        return edge

    def remove(self, edge: Edge) -> None:
        """Forget the edge; its id is free again."""
        self.chunks[edge.id // CHUNK][edge.id % CHUNK] = None
        self._freed.append(edge.id)

    def dismantle(self, edges: int) -> list[Edge]:
        """Take out what is in some places at the end, as many as that at most."""
        start = max(1, self.end - edges)
        found = [edge for at in range(start, self.end) if (edge := self.get(at)) is not None]
        for edge in found:
            self.chunks[edge.id // CHUNK][edge.id % CHUNK] = None
        self.end = start
        del self.chunks[start // CHUNK + 1 :]
        del self._freed[-edges:]
        return found

    def __iter__(self) -> Iterator[Edge]:
        for edge_id in range(1, self.end):
            edge = self.get(edge_id)
            if edge is not None:
                yield edge
