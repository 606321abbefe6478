"""Which instances the index knows, kept to what is listed: the facts that take it there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from extproc.index import Capacity, Fact, Joined, Left, PrefixIndex, Tier
from extproc.terms import Endpoint, InstanceId


@dataclass(frozen=True, slots=True)
class Member:
    """An instance as the roster has it: what makes it another one, and its GPU blocks."""

    endpoint: str
    block_size: int
    capacity: int | None


class Roster:
    """What this process last wrote of a pool's instances; at first, what the index has of them.

    Whoever lists an instance lets it join. Leaving is another matter where replicas share the
    index: one that lists less than the others (its discovery has said only half so far) must not
    take from them what an instance holds. So an instance leaves only after nobody has listed it for
    a while.

    grace_s: how long; 0 where there are no replicas.
    """

    def __init__(self, index: PrefixIndex, grace_s: float = 0.0) -> None:
        self._grace_s = grace_s
        self._unlisted: dict[InstanceId, float] = {}
        self._known = {
            one.name: Member(one.endpoint, one.block_size, one.limits[Tier.GPU])
            for one in index.instances()
        }

    def change(self, listed: Iterable[tuple[InstanceId, Endpoint, int, int | None]]) -> list[Fact]:
        """What is to be written so that these instances are there.

        listed: name, endpoint, block size and capacity in blocks (None: unknown). One that stays
        keeps what it is known to hold. Another endpoint or block size under the same name is a new
        instance.
        """
        wanted = {
            name: Member(endpoint, block_size, capacity)
            for name, endpoint, block_size, capacity in listed
        }
        facts: list[Fact] = []
        for name, member in wanted.items():
            known = self._known.get(name)
            same = known is not None and (known.endpoint, known.block_size) == (
                member.endpoint,
                member.block_size,
            )
            if not same:
                facts.append(Joined(name, member.block_size, member.endpoint))
            if member.capacity is not None and not (same and known == member):
                facts.append(Capacity(name, Tier.GPU, member.capacity))
        self._known = wanted
        return facts

    def lost(self, index: PrefixIndex) -> list[Fact]:
        """What is to be written so that those that were written, and that the index has no longer,
        are there again: the log was emptied, or a replica that does not list them saw them go."""
        present = {one.name for one in index.instances()}
        facts: list[Fact] = []
        for name, member in self._known.items():
            if name not in present:
                facts.append(Joined(name, member.block_size, member.endpoint))
                if member.capacity is not None:
                    facts.append(Capacity(name, Tier.GPU, member.capacity))
        return facts

    def gone(
        self, index: PrefixIndex, may_remove: Callable[[InstanceId], bool], now: float
    ) -> list[Fact]:
        """What is to be written so that those that nobody lists are there no longer. O(instances).

        may_remove: whether this process is the one to write it, and no other lists the instance.
        now: seconds, rising.
        """
        candidates = [
            one.name
            for one in index.instances()
            if one.name not in self._known and may_remove(one.name)
        ]
        self._unlisted = {name: self._unlisted.get(name, now) for name in candidates}
        return [
            Left(name) for name, since in self._unlisted.items() if now - since >= self._grace_s
        ]
