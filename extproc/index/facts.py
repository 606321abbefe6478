"""Facts: the only things that change the committed index (docs/index.md).

A fact is data. The index is a fold over facts in log order, without a clock and without chance, so
the same log gives the same index everywhere.
"""

from enum import IntEnum, unique
from typing import TypeAlias

from msgspec import Struct

from extproc.terms import BlockKey, InstanceId, PackedKeys


@unique
class Tier(IntEnum):
    """Where an instance keeps a block. Values are those of the log format; never reused."""

    GPU = 0
    CPU = 1


@unique
class Source(IntEnum):
    """Who says so. Values are those of the log format; never reused."""

    PICK = 0
    """Expected: a request was just routed there."""
    ANSWER = 1
    """Expected: its answer was seen."""
    EVENT = 2
    """Certain: the engine said so."""
    CORRECTION = 3
    """The engine reported another number of cached tokens than predicted."""


class Held(Struct, frozen=True, tag="held"):
    """The instance has these blocks, in a chain after `parent` (0: from the root).

    From PICK and ANSWER it asserts the whole chain from the root: every ancestor is marked and
    touched. From EVENT and CORRECTION it asserts only `keys`. A parent that is in no edge: nothing
    is filed, and it is counted.

    tenant: whose bound counts the blocks; "" for none. A tenant's chains are its own (its name is
    part of their root), so the first fact of a chain settles whose it is, until nobody holds any
    block of it.
    """

    instance: InstanceId
    tier: Tier
    parent: BlockKey
    keys: PackedKeys
    source: Source
    tenant: str = ""


class Dropped(Struct, frozen=True, tag="dropped"):
    """The instance no longer has these blocks, in any order; descendants stay (a hole)."""

    instance: InstanceId
    tier: Tier
    keys: PackedKeys
    source: Source


class Cleared(Struct, frozen=True, tag="cleared"):
    """The instance has nothing any more, in any tier."""

    instance: InstanceId
    source: Source


class Expired(Struct, frozen=True, tag="expired"):
    """Expected blocks that no event confirmed in time; confirmed ones stay."""

    instance: InstanceId
    keys: PackedKeys


class Capacity(Struct, frozen=True, tag="capacity"):
    """The instance can keep at most so many blocks in this tier."""

    instance: InstanceId
    tier: Tier
    blocks: int


class Joined(Struct, frozen=True, tag="joined"):
    """The instance exists from here on, with blocks of `block_size` tokens, and is empty.

    One that is there with the same block size and endpoint stays as it is: several replicas say so
    of the same instance. endpoint: `ip:port`; another one under the same name is a new instance.
    """

    instance: InstanceId
    block_size: int
    endpoint: str = ""


class Left(Struct, frozen=True, tag="left"):
    """The instance is gone, with all it held."""

    instance: InstanceId


Fact: TypeAlias = Held | Dropped | Cleared | Expired | Capacity | Joined | Left
