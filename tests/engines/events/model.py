"""An index that is told what an engine's events say, and the engine's cache the dumb way."""

from collections import Counter
from collections.abc import Iterable, Sequence

from extproc.engines.events import Fold, split
from extproc.engines.events.wire import Event, Stored
from extproc.index import Fact, Joined, PrefixIndex, Tier
from extproc.prompt import block_keys, pack_ids, root_seed
from extproc.terms import BlockKey, InstanceId
from tests.engines.events.engine import decoded, removed, stored

BLOCK = 16
ENGINE = InstanceId("engine")


def root(adapter: str = "", salt: str = "") -> BlockKey:
    """As `extproc/serve` computes it for requests."""
    return root_seed(secret=b"s", model="m", adapter=adapter, salt=salt, block_size=BLOCK)


class Told:
    """A fold of events, and the index that its facts go to."""

    def __init__(self, fold: Fold | None = None, block: int = BLOCK) -> None:
        self.index = PrefixIndex()
        self.index.apply(Joined(ENGINE, block))
        self.fold = fold or Fold(ENGINE, block, root)

    def tell(self, *events: object) -> list[Fact]:
        """The facts of these events, maps or arrays, which must be read."""
        batch = decoded(*events)
        return [fact for event in batch.events for fact in self.take(event)]

    def take(self, event: Event, pieces: int = 4) -> list[Fact]:
        """The facts of one event, folded in pieces of so many blocks."""
        facts: list[Fact] = []
        for piece in split(event, pieces) if isinstance(event, Stored) else [event]:
            facts += self.fold.apply(piece)
        for fact in facts:
            self.index.apply(fact)
        return facts

    def depth(
        self, ids: Sequence[int], adapter: str = "", salt: str = "", block: int = BLOCK
    ) -> tuple[int, int]:
        """Leading blocks of a prompt on the GPU, and in any tier."""
        keys = block_keys(pack_ids(ids), root(adapter, salt), block)
        found = self.index.match(keys).get(ENGINE)
        return (found.gpu, found.any) if found else (0, 0)


class Cache:
    """An engine's blocks with their copies, and the events that it would send.

    A block's name is its number in `names`: its whole prefix of tokens.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[int, ...], int] = {}
        self.copies: Counter[tuple[Tier, int]] = Counter()

    def store(
        self, ids: Sequence[int], start: int, stop: int, tier: Tier, page: int = BLOCK
    ) -> dict[str, object]:
        """Fill the pages `start` to `stop` of a prompt."""
        hashes = [self._name(ids[: (number + 1) * page]) for number in range(start, stop)]
        self.copies.update((tier, engine_hash) for engine_hash in hashes)
        parent = self._name(ids[: start * page]) if start else None
        tokens = ids[start * page : stop * page]
        return stored(hashes, tokens, parent, medium=tier.name, block_size=page)

    def evict(self, tier: Tier, engine_hash: int) -> dict[str, object]:
        """Lose one copy."""
        self.copies[tier, engine_hash] -= 1
        return removed(engine_hash, medium=tier.name)

    def holds(self, tier: Tier, ids: Iterable[int]) -> bool:
        """Whether there is a copy of the block that ends this prompt."""
        return self.copies[tier, self.names.get(tuple(ids), 0)] > 0

    def depth(self, ids: Sequence[int], *tiers: Tier, page: int = BLOCK) -> int:
        """Leading blocks of a prompt that are in one of the tiers."""
        blocks = 0
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            pages = range(end - BLOCK + page, end + 1, page)
            if not all(any(self.holds(tier, ids[:at]) for tier in tiers) for at in pages):
                break
            blocks += 1
        return blocks

    def _name(self, ids: Sequence[int]) -> int:
        return self.names.setdefault(tuple(ids), len(self.names) + 1)
