"""Chats of tenants, in a closed loop: what the experiments play where no trace shows the case."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from extproc.replay.traffic import Ids, Request, packed
from extproc.terms import PackedKeys

BLOCK = 64
FOREVER = 1 << 20


@dataclass(slots=True, eq=False)
class ChatRequest(Request):
    """A turn that knows its chat, whose it is, and what all that comes of it is drawn from."""

    chat: int = 0
    tenant: int = 0
    chance: random.Random = field(default_factory=random.Random)


@dataclass(frozen=True, slots=True)
class Chats:
    """How the chats are; lengths in tokens, means of what is drawn.

    Chats begin at `rate` a second (Poisson) for `seconds`. weights: the tenants' shares of them.
    prefix: what a tenant's chats have in common. turns: geometric. question: uniform within half of
    its mean; the first is `first`. think_s: exponential, after the answer. by_tenant: what is
    sticky is the tenant (a hash of its key), not the chat. loops: share of chats that are run by a
    tool loop, which comes back after half a second to a second. calls: share of all answers that
    call a tool, which takes as long. agents: only so many chats begin by themselves, each of an
    agent that begins its next one when the last has ended, until `seconds`.
    """

    rate: float
    seconds: float
    weights: tuple[float, ...] = (1.0,)
    prefix: int = 2_000
    first: int = 600
    question: int = 300
    answer: int = 300
    turns: float = 8.0
    think_s: float = 20.0
    context: int = 65_536
    by_tenant: bool = False
    loops: float = 0.0
    calls: float = 0.0
    agents: int = FOREVER

    def traffic(self, seed: int) -> "ChatTraffic":
        """Chats drawn with the seed: the same ones whatever answers them."""
        return ChatTraffic(self, seed)


@dataclass(slots=True)
class ChatTraffic:
    """The chats as a replay's traffic."""

    chats: Chats
    seed: int
    block_size: int = BLOCK
    _ids: dict[int, Ids] = field(default_factory=dict)

    def arrivals(self) -> Iterator[Request]:
        """The first turns."""
        chance, time = random.Random(self.seed), 0.0
        for chat in range(self.chats.agents):
            time += chance.expovariate(self.chats.rate)
            if time > self.chats.seconds:
                return
            yield self._begin(chat, time)

    def following(self, request: Request, ended: float) -> Request | None:
        """The next turn, or the agent's next chat, if there is one."""
        assert isinstance(request, ChatRequest)
        chance = request.chance
        at = ended + self._think_s(request, chance)
        tokens = request.tokens + request.output + length(chance, self.chats.question)
        room = tokens + self.chats.answer * 2 <= self.chats.context
        if room and chance.random() >= 1 / self.chats.turns:
            return self._turn(at, request.turn + 1, tokens, request.chat, request.tenant, chance)
        del self._ids[request.chat]
        is_next = self.chats.agents < FOREVER and at < self.chats.seconds
        return self._begin(request.chat + self.chats.agents, at) if is_next else None

    def shared(self) -> list[PackedKeys]:
        """What the chats of each tenant begin with."""
        blocks = np.arange(self.chats.prefix // BLOCK, dtype="<u8")
        tenants = range(len(self.chats.weights))
        return [packed(blocks + np.uint64((tenant + 1) << 56)) for tenant in tenants]

    def _think_s(self, request: ChatRequest, chance: random.Random) -> float:
        # Which chats are loops must not depend on what else is drawn.
        loops = self.chats.loops and random.Random(request.chat).random() < self.chats.loops
        if loops or request.calls_tool:
            return chance.uniform(0.5, 1.0)
        return chance.expovariate(1 / self.chats.think_s)

    def _begin(self, chat: int, at: float) -> ChatRequest:
        chance = random.Random(self.seed << 24 | chat)
        tenant = chance.choices(range(len(self.chats.weights)), self.chats.weights)[0]
        ids = np.arange(self.chats.context // BLOCK, dtype="<u8") + np.uint64((chat + 1) << 24)
        shared = self.chats.prefix // BLOCK
        ids[:shared] = np.arange(shared, dtype="<u8") + np.uint64((tenant + 1) << 56)
        self._ids[chat] = ids
        said = self.chats.prefix + length(chance, self.chats.first)
        return self._turn(at, 0, said, chat, tenant, chance)

    def _turn(
        self, at: float, turn: int, tokens: int, chat: int, tenant: int, chance: random.Random
    ) -> ChatRequest:
        ids, answer = self._ids[chat], length(chance, self.chats.answer)
        return ChatRequest(
            at,
            tenant if self.chats.by_tenant else chat,
            turn,
            packed(ids[: tokens // BLOCK]),
            tokens,
            answer,
            packed(ids[: (tokens + answer - 1) // BLOCK]),
            calls_tool=bool(self.chats.calls) and chance.random() < self.chats.calls,
            chat=chat,
            tenant=tenant,
            chance=chance,
        )


def length(chance: random.Random, mean: int) -> int:
    """Tokens, uniform within half of their mean."""
    return chance.randint(mean // 2, mean + mean // 2)
