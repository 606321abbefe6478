"""A replica of the product in virtual time: its index, its load ledger, a policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from extproc.index import Capacity, Depths, Held, Joined, Left, PrefixIndex, Source, Tier
from extproc.replay.traffic import Request
from extproc.routing import (
    Candidate,
    InstanceView,
    Load,
    Outlook,
    Policy,
    Ranking,
    Score,
    Speed,
    Ticket,
    Turn,
    last_of,
)
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, Endpoint, InstanceId, PackedKeys

_NO_KEYS = PackedKeys(b"")


@dataclass(frozen=True, slots=True)
class LabTurn(Turn):
    """A turn with what the published baselines ask for beyond what the product's policies do.

    at: now, seconds. conversation: which turns belong together. keys: of the prompt's full blocks.
    """

    at: float = 0.0
    conversation: int = 0
    keys: PackedKeys = _NO_KEYS


@dataclass(frozen=True, slots=True)
class LabView(InstanceView):
    """An instance with what the published baselines ask for.

    active_tokens: prompt tokens of the requests in flight there. held_tokens: tokens that it is
    believed to cache. capacity_tokens: of its cache. queued, queued_tokens: requests whose first
    token has not come, and their prompts' tokens.
    """

    active_tokens: float = 0.0
    held_tokens: int = 0
    capacity_tokens: int = 0
    queued: int = 0
    queued_tokens: int = 0

    @property
    def cache_use(self) -> float:
        """Share of the cache that requests in flight use, at most 1."""
        return min(self.active_tokens / self.capacity_tokens, 1.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a request, and from what. depths: blocks that each cache holds."""

    request: Request
    is_known: bool
    depths: Mapping[InstanceId, Depths]
    prefix: BlockKey | None
    ranking: Ranking


@dataclass(slots=True, eq=False)
class Placement:
    """Where a request went and what was believed of it."""

    request: Request
    engine: int
    score: Score
    ticket: Ticket
    is_known: bool = True


def _apply(router: "Router", fact: Held, _: float) -> None:
    router.index.apply(fact)


class Router:
    """Places requests as the product does: match, choose, expect.

    speed: the guess of what a prefill takes, the same for all engines; `outlook.rates` may be told
    better. is_pooled: all engines have one cache. on_fact: told each fact, for the index.
    """

    def __init__(
        self,
        policy: Policy,
        engines: int,
        capacity: int,
        block_size: int,
        speed: Speed,
        is_pooled: bool = False,
    ) -> None:
        self.policy = policy
        self.on_fact: Callable[[Router, Held, float], None] = _apply
        self.index = PrefixIndex()
        self.outlook = Outlook(speed, 0.0)
        self.names = [InstanceId(f"i{number}") for number in range(engines)]
        self._endpoints = [Endpoint(f"10.0.0.1:{8000 + number}") for number in range(engines)]
        self._number = {name: number for number, name in enumerate(self.names)}
        self._active = [0.0] * engines
        self.beyond = [0.0] * engines
        """Tokens that wait there beyond what is predicted to, by the engines' counters."""
        self._queued = [0] * engines
        self._queued_tokens = [0] * engines
        self._capacity = capacity
        self._block = block_size
        self._turns = 0
        self._caches = self.names[:1] * engines if is_pooled else self.names
        for name in dict.fromkeys(self._caches):
            room = capacity * engines if is_pooled else capacity
            self.index.apply(Joined(name, block_size))
            self.index.apply(Capacity(name, Tier.GPU, room))

    def choose(
        self,
        request: Request,
        now: float,
        up: Sequence[int] | None = None,
        is_known: bool = True,
    ) -> Choice:
        """Rank the engines for it.

        up: the engines that may be chosen. is_known: whether the prompt's blocks are; else nothing
        is looked up, and nothing will be expected.
        """
        depths = self.index.match(request.keys) if is_known else {}
        self._turns += 1
        turn = LabTurn(
            request.tokens,
            self._turns,
            at=now,
            conversation=request.conversation,
            keys=request.keys,
        )
        eligible = range(len(self.names)) if up is None else up
        prefix, ranking = self._rank(turn, eligible, depths, now)
        return Choice(request, is_known, depths, prefix, ranking)

    def place(self, choice: Choice, now: float) -> Placement:
        """Send the request to the best engine, and expect its prompt there."""
        request, best = choice.request, choice.ranking.best
        self.outlook.crowds.placed(choice.prefix, choice.ranking, now)
        uncached = float(request.tokens - best.cached_tokens)
        ticket = self.outlook.start(best.instance, uncached, now)
        number = self._number[best.instance]
        self._active[number] += request.tokens
        self._queued[number] += 1
        self._queued_tokens[number] += request.tokens
        depth = choice.depths.get(self._caches[number])
        if choice.is_known:
            self.expect(number, request.keys, now, depth.gpu if depth else 0)
        return Placement(request, number, best, ticket, choice.is_known)

    def expect(self, engine: int, keys: PackedKeys, now: float, depth: int = 0) -> None:
        """The engine is taken to hold the chain. depth: blocks that the index knows already."""
        cut = depth * KEY_BYTES
        parent = BlockKey(int.from_bytes(keys[cut - KEY_BYTES : cut], "little"))
        held = Held(
            self._caches[engine],
            Tier.GPU,
            parent if cut else NO_BLOCK,
            PackedKeys(keys[cut:]),
            Source.PICK,
        )
        self.on_fact(self, held, now)

    def prefilled(self, placement: Placement, now: float, is_seen: bool) -> None:
        """Its prefill ended. is_seen: whether the router is shown the first token."""
        self._queued[placement.engine] -= 1
        self._queued_tokens[placement.engine] -= placement.request.tokens
        if is_seen:
            self.outlook.computed(placement.ticket, now)

    def ended(self, placement: Placement, now: float) -> None:
        """Its answer ended: the next turn will show it, so it is expected from now on."""
        self.outlook.ledger.end(placement.ticket)
        self._active[placement.engine] -= placement.request.tokens
        if placement.is_known and placement.request.answered is not placement.request.keys:
            self.expect(placement.engine, placement.request.answered, now)

    def lost(self, placement: Placement, is_prefilled: bool) -> None:
        """Its engine went away before it had ended."""
        self.outlook.ledger.end(placement.ticket)
        self._active[placement.engine] -= placement.request.tokens
        self._queued[placement.engine] -= not is_prefilled

    def left(self, engine: int) -> None:
        """The engine has gone, and its cache with it."""
        self.index.apply(Left(self.names[engine]))

    def joined(self, engine: int) -> None:
        """An engine has come, empty."""
        self.index.apply(Joined(self.names[engine], self._block))
        self.index.apply(Capacity(self.names[engine], Tier.GPU, self._capacity))

    def _rank(
        self,
        turn: LabTurn,
        eligible: Sequence[int],
        depths: Mapping[InstanceId, Depths],
        now: float,
    ) -> tuple[BlockKey | None, Ranking]:
        most = ((turn.tokens or 1) - 1) // self._block
        candidates = []
        for number in eligible:
            depth = depths.get(self._caches[number])
            cached = min(depth.gpu, most) * self._block if depth else 0
            candidates.append(Candidate(self.names[number], self._endpoints[number], cached))
        loads = [
            Load(load.waiting + self.beyond[number], load.in_flight)
            for load, number in zip(
                self.outlook.loads([one.instance for one in candidates], now),
                eligible,
                strict=True,
            )
        ]
        longest = max(one.cached_tokens for one in candidates) // self._block
        prefix = last_of(turn.keys, longest)
        pool = self.outlook.view(candidates, loads, len(eligible), now, prefix)
        shown = [
            self._shown(view, number) for view, number in zip(pool.instances, eligible, strict=True)
        ]
        return prefix, self.policy.rank(turn, replace(pool, instances=shown))

    def _shown(self, view: InstanceView, number: int) -> LabView:
        return LabView(
            **{name: getattr(view, name) for name in InstanceView.__slots__},
            active_tokens=self._active[number],
            held_tokens=self.index.held_blocks(self._caches[number]) * self._block,
            capacity_tokens=self._capacity * self._block,
            queued=self._queued[number],
            queued_tokens=self._queued_tokens[number],
        )
