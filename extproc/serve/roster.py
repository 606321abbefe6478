"""Which instances the index knows, kept to what is listed: the facts that take it there."""

from collections.abc import Iterable
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

    The index is not asked again: facts that were just written may not be back from the log.
    """

    def __init__(self, index: PrefixIndex) -> None:
        self._known = {
            one.name: Member(one.endpoint, one.block_size, one.limits[Tier.GPU])
            for one in index.instances()
        }

    def change(self, listed: Iterable[tuple[InstanceId, Endpoint, int, int | None]]) -> list[Fact]:
        """What is to be written so that these instances, and no others, are there.

        listed: name, endpoint, block size and capacity in blocks (None: unknown). One that stays
        keeps what it is known to hold. Another endpoint or block size under the same name is a new
        instance.
        """
        wanted = {
            name: Member(endpoint, block_size, capacity)
            for name, endpoint, block_size, capacity in listed
        }
        facts: list[Fact] = [Left(name) for name in self._known if name not in wanted]
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
