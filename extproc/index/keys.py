"""Arithmetic on packed block keys."""

from struct import Struct

import numpy as np

from extproc.terms import KEY_BYTES

_UNPACK = tuple(Struct(f"<{count}Q").unpack for count in range(65))
"""Up to so many keys, struct is faster than numpy."""


def common_prefix(edge: bytes, start: int, query: bytes, at: int) -> int:
    """Blocks that `edge` from byte `start` and `query` from byte `at` on share. O(log blocks).

    Both are runs of chained keys: where two keys are equal, all before them are.
    """
    low, high = 0, min(len(edge) - start, len(query) - at) // KEY_BYTES
    start -= KEY_BYTES
    at -= KEY_BYTES
    b = high * KEY_BYTES
    if edge[start + b : start + b + KEY_BYTES] == query[at + b : at + b + KEY_BYTES]:
        return high
    while low < high:
        middle = (low + high + 1) >> 1
        b = middle * KEY_BYTES
        if edge[start + b : start + b + KEY_BYTES] == query[at + b : at + b + KEY_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


def same_keys(one: bytes, other: bytes) -> int:
    """Leading blocks that are equal, at least one, of keys in any order. O(blocks), few steps."""
    if one[KEY_BYTES : 2 * KEY_BYTES] != other[KEY_BYTES : 2 * KEY_BYTES]:
        return 1
    low, high = 1, min(len(one), len(other)) // KEY_BYTES
    if one[: high * KEY_BYTES] == other[: high * KEY_BYTES]:
        return high
    while low < high:
        middle = (low + high + 1) >> 1
        start, stop = low * KEY_BYTES, middle * KEY_BYTES
        if one[start:stop] == other[start:stop]:
            low = middle
        else:
            high = middle - 1
    return low


def reverse(keys: bytes) -> bytes:
    """The same keys, last first."""
    return np.frombuffer(keys, np.uint64)[::-1].tobytes()


def key_sum(keys: bytes) -> int:
    """Sum of the keys modulo 2⁶⁴."""
    count = len(keys) // KEY_BYTES
    if count < len(_UNPACK):
        return sum(_UNPACK[count](keys))
    return int(np.frombuffer(keys, np.uint64).sum())
