"""The index as its definition says it, with sets and lists: slow, and plain to see as right.

Per instance: which blocks it holds in which tier, which of them are confirmed, and for every block
the number of the last fact that touched it. The least recently touched goes first, and of those
that one fact touched the deepest.
"""

from dataclasses import dataclass, field

import xxhash

from extproc.index import (
    Bounds,
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


@dataclass
class Instance:
    block_size: int
    endpoint: str
    held: dict[Tier, set[int]] = field(default_factory=lambda: {tier: set() for tier in Tier})
    sure: dict[Tier, set[int]] = field(default_factory=lambda: {tier: set() for tier in Tier})
    limit: dict[Tier, int | None] = field(default_factory=lambda: dict.fromkeys(Tier))
    touched: dict[int, int] = field(default_factory=dict)


BLOCK_BYTES = 24


def unpack(keys: bytes) -> list[int]:
    return [int.from_bytes(keys[b : b + 8], "little") for b in range(0, len(keys), 8)]


class Model:
    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.tenants: dict[int, str] = {}
        self.instances: dict[str, Instance] = {}
        self.parents: dict[int, int] = {}
        self.now = 0
        self.refused = 0

    def chain(self, key: int) -> list[int]:
        """From the root to this block."""
        chain = []
        while key:
            chain.append(key)
            key = self.parents[key]
        return chain[::-1]

    def match(self, query: bytes) -> dict[str, tuple[int, int]]:
        found = {}
        for name, instance in self.instances.items():
            gpu, everywhere = instance.held[Tier.GPU], set().union(*instance.held.values())
            blocks = unpack(query)
            depths = tuple(
                next((n for n, key in enumerate(blocks) if key not in has), len(blocks))
                for has in (gpu, everywhere)
            )
            if depths[1]:
                found[name] = (depths[0], depths[1])
        return found

    def apply(self, fact: Fact) -> None:
        self.now += 1
        if isinstance(fact, Joined):
            known = self.instances.get(fact.instance)
            same = (fact.block_size, fact.endpoint)
            if known is None or (known.block_size, known.endpoint) != same:
                self.instances[fact.instance] = Instance(fact.block_size, fact.endpoint)
            return
        instance = self.instances.get(fact.instance)
        if instance is None:
            self.refused += 1
            return
        match fact:
            case Held():
                self.hold(instance, fact)
            case Dropped():
                for key in unpack(fact.keys):
                    self.remove(instance, fact.tier, key)
            case Expired():
                for key in unpack(fact.keys):
                    for tier in Tier:
                        if key not in instance.sure[tier]:
                            self.remove(instance, tier, key)
            case Capacity():
                instance.limit[fact.tier] = fact.blocks
                self.evict(instance, fact.tier)
            case Cleared():
                for tier in Tier:
                    for key in list(instance.held[tier]):
                        self.remove(instance, tier, key)
            case Left():
                del self.instances[fact.instance]

    def hold(self, instance: Instance, fact: Held) -> None:
        everything = set().union(*(h for i in self.instances.values() for h in i.held.values()))
        if fact.parent and fact.parent not in everything:
            self.refused += 1
            return
        keys = unpack(fact.keys)
        for parent, key in zip([fact.parent, *keys], keys, strict=False):
            self.parents[key] = parent
        if not fact.parent and keys:
            alive = any(self.chain(key)[0] == keys[0] for key in everything)
            if not alive:
                self.tenants[keys[0]] = fact.tenant
        instance.held[fact.tier].update(keys)
        if fact.source in (Source.PICK, Source.ANSWER):
            instance.held[fact.tier].update(self.chain(fact.parent))
        else:
            instance.sure[fact.tier].update(keys)
        for key in self.chain(keys[-1] if keys else fact.parent):
            if any(key in held for held in instance.held.values()):
                instance.touched[key] = self.now
        self.evict(instance, fact.tier)
        chain = self.chain(keys[-1] if keys else fact.parent)
        if chain and (tenant := self.tenants[chain[0]]):
            self.keep_bound(self.bounds.tenant_bytes, tenant)
        self.keep_bound(self.bounds.pool_bytes, None)

    def keep_bound(self, limit: int | None, tenant: str | None) -> None:
        """Across instances: the least recently touched goes first, of one touch GPU blocks."""
        while limit is not None:
            counted = [
                (instance.touched[key], tier, -len(self.chain(key)), name, key)
                for name, instance in self.instances.items()
                for tier, held in instance.held.items()
                for key in held
                if tenant is None or self.tenants[self.chain(key)[0]] == tenant
            ]
            if len(counted) * BLOCK_BYTES <= limit:
                return
            _, tier, _, name, key = min(counted)
            self.remove(self.instances[name], tier, key)

    def remove(self, instance: Instance, tier: Tier, key: int) -> None:
        instance.held[tier].discard(key)
        instance.sure[tier].discard(key)

    def evict(self, instance: Instance, tier: Tier) -> None:
        held = instance.held[tier]
        limit = instance.limit[tier]
        while limit is not None and len(held) > limit:
            oldest = min(held, key=lambda key: (instance.touched[key], -len(self.chain(key))))
            self.remove(instance, tier, oldest)

    @property
    def digest(self) -> int:
        total = 0
        for name, instance in self.instances.items():
            limits = [instance.limit[tier] for tier in Tier]
            head = f"{instance.block_size} {limits} {name} {instance.endpoint} ".encode()
            planes = [*instance.held.values(), *instance.sure.values()]
            numbers = [sum(blocks) & (2**64 - 1) for blocks in planes]
            for held in instance.held.values():
                stamps = {instance.touched[key] for key in held}
                numbers += [sum(stamp**2 for stamp in stamps)]
            total += xxhash.xxh3_64_intdigest(
                head + b"".join(number.to_bytes(24, "little") for number in numbers)
            )
        return total & (2**64 - 1)
