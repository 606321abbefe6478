"""Ids of chained blocks for tests."""

import numpy as np

from extproc.replay.traffic import Ids


def ids(count: int, start: int = 1) -> Ids:
    """So many in a row."""
    return np.arange(start, start + count, dtype="<u8")
