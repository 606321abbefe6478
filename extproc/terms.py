"""The field's words as types, shared by every part; nothing here does anything."""

from typing import NewType

Endpoint = NewType("Endpoint", str)
"""Where an engine listens: `ip:port`, or `[ipv6]:port`."""

InstanceId = NewType("InstanceId", str)
"""One KV cache: an engine replica, or one data-parallel rank of it. Unique within its pool."""

BlockKey = NewType("BlockKey", int)
"""Chained hash of a block and all blocks before it: unsigned, 64 bits. 0 is no block."""

PackedKeys = NewType("PackedKeys", bytes)
"""Block keys of one chain, root first: 8 bytes a key, little-endian."""

TokenIds = NewType("TokenIds", bytes)
"""Token ids, 4 bytes an id, little-endian unsigned: the form that is hashed."""

NO_BLOCK = BlockKey(0)
"""The parent of a chain's first block."""

KEY_BYTES = 8
"""Bytes of one key in `PackedKeys`."""

TOKEN_BYTES = 4
"""Bytes of one id in `TokenIds`."""
