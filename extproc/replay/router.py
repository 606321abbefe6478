"""A replica of the product in virtual time: its index, its load ledger, a policy."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.index import Capacity, Depths, Held, Joined, PrefixIndex, Source, Tier
from extproc.replay.traffic import Request
from extproc.routing import (
    InstanceView,
    LoadLedger,
    Policy,
    PoolView,
    Score,
    Ticket,
    Turn,
    Utilisation,
)
from extproc.terms import KEY_BYTES, NO_BLOCK, BlockKey, Endpoint, InstanceId, PackedKeys

OVER = float(os.environ.get("OVER", "0"))


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
    believed to cache. capacity_tokens: of its cache.
    """

    active_tokens: float = 0.0
    held_tokens: int = 0
    capacity_tokens: int = 0


@dataclass(slots=True, eq=False)
class Placement:
    """Where a request went and what was believed of it."""

    request: Request
    engine: int
    score: Score
    ticket: Ticket


class Router:
    """Places requests as the product does: match, choose, expect.

    rate: the guess of the prefill rate, tokens a second, the same for all. overhead_s: what every
    prefill takes beside its tokens; it waits like tokens do. Whether first tokens are seen is up to
    the caller: `first_token` is called or not.
    """

    def __init__(
        self,
        policy: Policy,
        engines: int,
        capacity: int,
        block_size: int,
        rate: float,
        overhead_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.index = PrefixIndex()
        self.load = LoadLedger()
        self.utilisation = Utilisation(0.0)
        self.names = [InstanceId(f"i{number}") for number in range(engines)]
        self._endpoints = [Endpoint(f"10.0.0.1:{8000 + number}") for number in range(engines)]
        self._number = {name: number for number, name in enumerate(self.names)}
        self._active = [0.0] * engines
        self._capacity = capacity
        self._block = block_size
        self._rate = rate
        self._overhead = overhead_s * rate
        self._turns = 0
        for name in self.names:
            self.index.apply(Joined(name, block_size))
            self.index.apply(Capacity(name, Tier.GPU, capacity))

    def place(self, request: Request, now: float, up: Sequence[int] | None = None) -> Placement:
        """Choose an engine and expect the prompt there. up: the engines that may be chosen."""
        depths = self.index.match(request.keys)
        most = (request.tokens - 1) // self._block
        self._turns += 1
        turn = LabTurn(request.tokens, self._turns, now, request.conversation, request.keys)
        views = [
            self._view(number, depths, most, now)
            for number in (range(len(self.names)) if up is None else up)
        ]
        utilisation = self.utilisation.at(now, len(views))
        best = self.policy.rank(turn, PoolView(views, self._rate, utilisation)).best
        uncached = float(request.tokens - best.cached_tokens)
        ticket = self.load.start(best.instance, uncached + self._overhead, now, self._rate)
        self.utilisation.assign(uncached / self._rate)
        number = self._number[best.instance]
        self._active[number] += request.tokens
        depth = depths.get(best.instance)
        self.expect(number, request.keys, depth.gpu if depth else 0)
        return Placement(request, number, best, ticket)

    def expect(self, engine: int, keys: PackedKeys, depth: int = 0) -> None:
        """The engine is taken to hold the chain. depth: blocks that the index knows already."""
        cut = depth * KEY_BYTES
        parent = BlockKey(int.from_bytes(keys[cut - KEY_BYTES : cut], "little"))
        held = Held(
            self.names[engine],
            Tier.GPU,
            parent if cut else NO_BLOCK,
            PackedKeys(keys[cut:]),
            Source.PICK,
        )
        self.index.apply(held)

    def first_token(self, placement: Placement, now: float) -> None:
        """Its prefill ended."""
        self.load.computed(placement.ticket, now, self._rate)

    def ended(self, placement: Placement) -> None:
        """Its answer ended: the next turn will show it, so it is expected from now on."""
        self.load.end(placement.ticket)
        self._active[placement.engine] -= placement.request.tokens
        if placement.request.answered is not placement.request.keys:
            self.expect(placement.engine, placement.request.answered)

    def _view(
        self, number: int, depths: dict[InstanceId, Depths], most: int, now: float
    ) -> LabView:
        name = self.names[number]
        waiting, in_flight = self.load.of(name, now, self._rate)
        depth = depths.get(name)
        return LabView(
            instance=name,
            endpoint=self._endpoints[number],
            cached_tokens=min(depth.gpu, most) * self._block if depth else 0,
            waiting_tokens=waiting,
            in_flight=in_flight,
            prefill_rate=self._rate,
            active_tokens=self._active[number],
            held_tokens=self.index.held_blocks(name) * self._block,
            capacity_tokens=self._capacity * self._block,
        )
