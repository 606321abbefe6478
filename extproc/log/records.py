"""Facts ↔ the bytes of a record (docs/log-format.md). Pure.

A record is the facts that one replica appended together. It is signed with the pool's secret over
its place in the log, so that one that was cut, changed or moved is known as such; every replica
then leaves it out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest

from google.protobuf.message import DecodeError

from extproc.errors import PeerViolation
from extproc.index import (
    Capacity,
    Cleared,
    Dropped,
    Expired,
    Fact,
    Held,
    Joined,
    Left,
    Source,
    Tier,
)
from extproc.terms import KEY_BYTES, BlockKey, InstanceId, PackedKeys
from proto_gen import factlog_pb2 as pb

RECORD_VERSION = 1
"""The newest that this code reads and writes."""

MAX_RECORD_BYTES = 64 * 1024
"""Facts beyond it go into the next record; the largest single piece of a fact fits."""

MAX_KEYS = 7_680
"""Keys of one fact in a record; one with more becomes several."""

MAX_NAME = 512
"""Bytes of an instance's, endpoint's or tenant's name."""

MAX_BLOCKS = 1 << 40
MAX_BLOCK_SIZE = 1 << 20

_CHECKSUM_BYTES = 16
_TIERS = tuple(Tier)
_SOURCES = tuple(Source)
_NO_KEY = bytes(KEY_BYTES)


class BadRecord(PeerViolation):
    """A record that nobody may apply: `reason` is `checksum` or `malformed`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"record: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a record says. skipped: facts left out, of a later version or out of bounds."""

    version: int
    facts: tuple[Fact, ...]
    skipped: int


class Signer:
    """Keyed checksums of one pool. secret: the pool's, at most 64 bytes."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = blake2b(key=secret, digest_size=_CHECKSUM_BYTES, person=b"homing record")

    def sign(self, place: bytes, *parts: bytes) -> bytes:
        """16 bytes over `place` (what the parts are for) and the parts. About 1 µs/KB."""
        digest = self._keyed.copy()
        digest.update(len(place).to_bytes(4, "little"))
        digest.update(place)
        for part in parts:
            digest.update(part)
        return digest.digest()

    def signed(self, checksum: bytes, place: bytes, *parts: bytes) -> bool:
        """Whether `checksum` is what `sign` gives."""
        return compare_digest(checksum, self.sign(place, *parts))


# Writing


def pieces(fact: Fact) -> Iterator[Fact]:
    """The fact as records hold it: mostly itself; one of many keys in several, in order.

    What cannot be written is nobody's: a tenant that is long or no text gets a short name.
    """
    if type(fact) is Held:
        tenant = _short(fact.tenant)
        if len(fact.keys) <= MAX_KEYS * KEY_BYTES and tenant == fact.tenant:
            yield fact
            return
        parent = fact.parent
        for keys in _cut(fact.keys):
            yield Held(fact.instance, fact.tier, parent, keys, fact.source, tenant)
            parent = BlockKey(int.from_bytes(keys[-KEY_BYTES:], "little"))
    elif type(fact) is Dropped and len(fact.keys) > MAX_KEYS * KEY_BYTES:
        for keys in _cut(fact.keys):
            yield Dropped(fact.instance, fact.tier, keys, fact.source)
    elif type(fact) is Expired and len(fact.keys) > MAX_KEYS * KEY_BYTES:
        for keys in _cut(fact.keys):
            yield Expired(fact.instance, keys)
    else:
        yield fact


def size(fact: Fact) -> int:
    """Bytes that a piece takes in a record, at most."""
    keys = len(fact.keys) if isinstance(fact, Held | Dropped | Expired) else 0
    tenant = 4 * len(fact.tenant) if type(fact) is Held else 0
    endpoint = 4 * len(fact.endpoint) if type(fact) is Joined else 0
    return 48 + 4 * len(fact.instance) + keys + tenant + endpoint


def encode(facts: Sequence[Fact], version: int = RECORD_VERSION) -> bytes:
    """A batch of pieces, to be signed. 2 µs a fact. Raises ValueError for text that is not UTF-8.

    version: the oldest among the live replicas; there is one so far.
    """
    batch = pb.Batch(version=version)
    instances: dict[str, int] = {}
    tenants: dict[str, int] = {}
    add = batch.facts.add
    for fact in facts:
        entry = add()
        place = instances.setdefault(fact.instance, len(instances))
        if place:
            entry.instance = place
        _write(entry, fact, tenants)
    batch.instances.extend(instances)
    batch.tenants.extend(tenants)
    return batch.SerializeToString()


def seal(signer: Signer, place: bytes, batch: bytes) -> bytes:
    """The record's bytes, for this place and no other."""
    return pb.Record(checksum=signer.sign(place, batch), batch=batch).SerializeToString()


# Reading


def unseal(signer: Signer, place: bytes, record: bytes) -> bytes:
    """The batch in a record that was found at `place`. Raises BadRecord."""
    try:
        read = pb.Record.FromString(record)
    except DecodeError:
        raise BadRecord("malformed") from None
    if not signer.signed(read.checksum, place, read.batch):
        raise BadRecord("checksum")
    return read.batch


def decode(data: bytes) -> Decoded:
    """The facts of a batch. 3 µs a fact. Raises BadRecord where it is no batch."""
    try:
        batch = pb.Batch.FromString(data)
    except DecodeError:
        raise BadRecord("malformed") from None
    names = [InstanceId(name) if 0 < len(name) <= MAX_NAME else None for name in batch.instances]
    tenants = ["", *batch.tenants]
    facts: list[Fact] = []
    skipped = 0
    for entry in batch.facts:
        place = entry.instance
        instance = names[place] if place < len(names) else None
        fact = _read(entry, instance, tenants) if instance else None
        if fact is None:
            skipped += 1
        else:
            facts.append(fact)
    return Decoded(batch.version, tuple(facts), skipped)


def _cut(keys: PackedKeys) -> Iterator[PackedKeys]:
    step = MAX_KEYS * KEY_BYTES
    for start in range(0, len(keys) or 1, step):
        yield PackedKeys(keys[start : start + step])


def _short(tenant: str) -> str:
    if len(tenant) <= MAX_NAME // 4 and (tenant.isascii() or _is_text(tenant)):
        return tenant
    data = tenant.encode("utf-8", "surrogatepass")
    return f"blake2b:{blake2b(data, digest_size=16).hexdigest()}"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(entry: pb.Fact, fact: Fact, tenants: dict[str, int]) -> None:
    """Fill in the kind. A message without a value set is still there, which names the kind."""
    if isinstance(fact, Held):
        held = entry.held
        held.tier, held.source = fact.tier, fact.source
        held.parent, held.keys = fact.parent, fact.keys
        if fact.tenant:
            held.tenant = tenants.setdefault(fact.tenant, len(tenants) + 1)
        held.SetInParent()
    elif isinstance(fact, Dropped):
        dropped = entry.dropped
        dropped.tier, dropped.source, dropped.keys = fact.tier, fact.source, fact.keys
        dropped.SetInParent()
    elif isinstance(fact, Cleared):
        entry.cleared.source = fact.source
        entry.cleared.SetInParent()
    elif isinstance(fact, Expired):
        entry.expired.keys = fact.keys
        entry.expired.SetInParent()
    elif isinstance(fact, Capacity):
        entry.capacity.tier, entry.capacity.blocks = fact.tier, max(0, fact.blocks)
        entry.capacity.SetInParent()
    elif isinstance(fact, Joined):
        entry.joined.block_size, entry.joined.endpoint = fact.block_size, fact.endpoint
        entry.joined.SetInParent()
    else:
        entry.left.SetInParent()


def _read(entry: pb.Fact, instance: InstanceId, tenants: Sequence[str]) -> Fact | None:
    """The fact; None for a kind of a later version, or a value out of bounds."""
    kind = entry.WhichOneof("kind")
    if kind == "held":
        return _read_held(entry.held, instance, tenants)
    if kind == "dropped":
        dropped = entry.dropped
        tier, source, keys = _tier(dropped.tier), _source(dropped.source), _keys(dropped.keys)
        if tier is None or source is None or keys is None:
            return None
        return Dropped(instance, tier, keys, source)
    if kind == "cleared":
        source = _source(entry.cleared.source)
        return None if source is None else Cleared(instance, source)
    if kind == "expired":
        keys = _keys(entry.expired.keys)
        return None if keys is None else Expired(instance, keys)
    if kind == "capacity":
        tier, blocks = _tier(entry.capacity.tier), entry.capacity.blocks
        return None if tier is None or blocks > MAX_BLOCKS else Capacity(instance, tier, blocks)
    if kind == "joined":
        size, endpoint = entry.joined.block_size, entry.joined.endpoint
        if not 0 < size <= MAX_BLOCK_SIZE or len(endpoint) > MAX_NAME:
            return None
        return Joined(instance, size, endpoint)
    return Left(instance) if kind == "left" else None


def _read_held(held: pb.Held, instance: InstanceId, tenants: Sequence[str]) -> Held | None:
    tier, source, keys = _tier(held.tier), _source(held.source), _keys(held.keys)
    if tier is None or source is None or keys is None or held.tenant >= len(tenants):
        return None
    tenant = tenants[held.tenant]
    if len(tenant) > MAX_NAME:
        return None
    return Held(instance, tier, BlockKey(held.parent), keys, source, tenant)


def _keys(keys: bytes) -> PackedKeys | None:
    """Well-formed ones: whole keys, none of them 0, not too many."""
    if len(keys) % KEY_BYTES or len(keys) > MAX_KEYS * KEY_BYTES:
        return None
    found = keys.find(_NO_KEY)
    while found >= 0:
        if found % KEY_BYTES == 0:
            return None
        found = keys.find(_NO_KEY, found + 1)
    return PackedKeys(keys)


def _tier(number: int) -> Tier | None:
    return _TIERS[number] if number < len(_TIERS) else None


def _source(number: int) -> Source | None:
    return _SOURCES[number] if number < len(_SOURCES) else None
