"""Lists of token ids ↔ the packed form that is hashed."""

import sys
from array import array
from collections.abc import Iterable

from extproc.errors import Unroutable
from extproc.terms import TokenIds


def pack_ids(ids: Iterable[int]) -> TokenIds:
    """Ids as 4 bytes each, little-endian. Raises Unroutable where one is no id."""
    try:
        packed = array("I", ids)
    except (OverflowError, TypeError):
        raise Unroutable("token_ids_invalid") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return TokenIds(packed.tobytes())


def unpack_ids(ids: TokenIds) -> list[int]:
    """The inverse of `pack_ids`."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
