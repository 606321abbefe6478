"""One pool as this process serves it: its models, instances, index, log and load."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import NamedTuple

from extproc import config as configuration
from extproc.engines import Instance, Members
from extproc.engines.discovery import instance_of
from extproc.index import Depths, Dropped, Expired, Fact, Held, PrefixIndex
from extproc.log import FactLog
from extproc.log.pending import Pending
from extproc.prompt import Chain, ServedModel
from extproc.routing import (
    POLICIES,
    Admission,
    Candidate,
    Gaps,
    LoadLedger,
    Outlook,
    Policy,
    PoolView,
    Speed,
)
from extproc.serve.digests import Digests
from extproc.serve.expectations import Expectations
from extproc.serve.line import Line
from extproc.serve.roster import Roster
from extproc.serve.routed import Routed
from extproc.serve.wishes import Sessions
from extproc.terms import KEY_BYTES, BlockKey, InstanceId, PackedKeys

NEVER = 1 << 62
"""The ticket of what is not in the log: it does not settle."""

ASSURED_ROOM = 2
"""How often its capacity an instance may hold whose events say what it holds. It evicts in an order
of its own, so the index must not go before it; the rest is for what is expected and on its way."""


class Cached(NamedTuple):
    """Tokens of a prompt that an instance holds. slow: those of them that are not on its GPU."""

    tokens: int
    slow: int


NOTHING = Cached(0, 0)


@dataclass(slots=True)
class Pool:
    """Instances that serve the same models, and what is known of them.

    models: name or alias → model; one whose tokenizer is not loaded yet is absent.
    renames: alias → name, of the models whose requests are forwarded under their name.
    secret: part of every root seed, so that a client cannot compute keys; the log's, once that
        knows it. roster: None until `enrol`. pending: own picks that the index does not have yet.
    expectations: what picks asserted and events may confirm. assured: instances whose events say
        all that they hold. routed: prompts of late, for the others. sessions: where they went last.
    admission: None where nobody is refused for room. capacity_tokens: of all caches together. line:
    who waits here; None where nobody does. gaps: how regularly sessions come back.
    """

    config: configuration.Pool
    log: FactLog
    index: PrefixIndex
    digests: Digests
    outlook: Outlook
    pending: Pending
    policy: Policy = field(default_factory=POLICIES["priced"])
    models: dict[str, ServedModel] = field(default_factory=dict)
    model_names: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()
    renames: dict[str, str] = field(default_factory=dict)
    members: Members = field(default_factory=Members)
    expectations: Expectations = field(default_factory=Expectations)
    assured: frozenset[InstanceId] = frozenset()
    routed: Routed = field(default_factory=Routed)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    sessions: Sessions = field(default_factory=lambda: Sessions(secrets.token_bytes(8)))
    roster: Roster | None = None
    admission: Admission | None = None
    capacity_tokens: int = 0
    line: Line | None = None
    gaps: Gaps = field(default_factory=Gaps)
    _shared: bytes | None = None
    _enrolled: int = 0

    def __post_init__(self) -> None:
        self.members.conditions.prefilled = self.outlook.rates.observe
        self.members.conditions.restarted = self.outlook.rates.restarted
        self.members.conditions.rate = self.outlook.rate

    @property
    def load(self) -> LoadLedger:
        """What is in flight where."""
        return self.outlook.ledger

    @property
    def name(self) -> str:
        """Unique among the pools."""
        return self.config.name

    def append(self, facts: Sequence[Fact]) -> None:
        """Hand facts to the log, which gives them to the index in log order."""
        if facts:
            self.log.append(self.name, facts)

    def take_secret(self) -> None:
        """Use the log's secret from when it is known; what was hashed with another is forgotten."""
        known = self.log.secret(self.name)
        if known != self._shared:
            self._shared = known
            self.pending.clear()
            if known is not None:
                self.secret = known

    def deepen(self, keys: PackedKeys, found: dict[InstanceId, Depths]) -> dict[InstanceId, Depths]:
        """What the index found for a chain, with what is pending."""
        if not self.pending:
            return found
        self.pending.settle(self.log.settled(self.name))
        return self.pending.deepen(keys, found)

    def expect(self, chains: Sequence[Chain], held: Sequence[Held], secret: bytes) -> None:
        """A request was routed: the ends of its chains that the index does not have.

        secret: that the keys were made with; facts of another than the log's are not logged.
        """
        if not held or secret != self.secret:
            return
        ticket = NEVER
        if self._shared is not None:
            ticket = self.log.append(self.name, held)
            if self.log.settled(self.name) >= ticket:
                return
        for chain, end in zip(chains, held, strict=True):
            start = (len(chain.keys) - len(end.keys)) // KEY_BYTES
            self.pending.add(ticket, end.instance, chain.keys, start, end.tenant)

    def retract(self, dropped: Sequence[Dropped], secret: bytes) -> None:
        """Some of what was expected did not come; what events have confirmed stays."""
        if not dropped or secret != self.secret:
            return
        if self._shared is not None:
            self.log.append(self.name, [Expired(fact.instance, fact.keys) for fact in dropped])
        for fact in dropped:
            self.pending.retract(fact)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Those that the configuration lists, or that its discovery listed last."""
        return self.members.instances

    def configure(self, listed: configuration.Pool) -> None:
        """Take over what the configuration says, with the instances that it lists.

        Those that a discovery found stay until it says otherwise. `enrol` tells the log.
        """
        self.config = listed
        self.policy = POLICIES[listed.policy]()
        horizon_s = listed.admission.horizon_s if listed.admission else None
        if horizon_s is None:
            self.admission = None
        elif self.admission is None or self.admission.horizon_s != horizon_s:
            self.admission = Admission(horizon_s)
        flow = listed.flow_control
        if isinstance(flow, str):
            self.line = None
        elif self.line is None or self.line.max_wait_s != flow.max_wait_s:
            self.line = Line(self.outlook, flow.max_wait_s)
        self.outlook.rates.assume(Speed(listed.prefill_rate))
        if listed.discovery is None:
            scraped = listed.metrics != "off"
            self.members.set_instances([instance_of(one, scraped) for one in listed.instances])
        self.adapters = frozenset(name for model in listed.models for name in model.adapters)
        self.model_names = frozenset(name for model in listed.models for name in model.names)
        self.renames = {
            alias: model.name
            for model in listed.models
            if model.rewrite_aliases
            for alias in model.aliases
        }

    def enrol(self) -> None:
        """Let the log know which instances are there, for the first time once it is open.

        New ones join empty; those that the index has keep what they hold. Missing ones leave: at
        once where this process is alone, and see `tend`. Before a discovery has said anything,
        nobody is missing.
        """
        if not self.members.known:
            return
        self.outlook.rates.keep(one.id for one in self.instances)
        capacities = [self._capacity(one) for one in self.instances]
        assumed = self.config.capacity_blocks
        blocks = sum(assumed if known is None else known for known in capacities)
        self.capacity_tokens = blocks * self.config.block_size
        if self.roster is None:
            self.roster = Roster(self.index, self.log.grace_s)
        facts = self.roster.change(
            (one.id, one.endpoint, self.config.block_size, self._capacity(one))
            for one in self.instances
        )
        self._enrolled = self.log.append(self.name, facts)
        self.tend()

    def tend(self) -> None:
        """Let instances join again that the log lost since, and leave that nobody lists any more.

        Nothing while what was written before is on its way. O(instances).
        """
        settled = self.log.settled(self.name) >= self._enrolled
        if self.roster is None or not settled or not self.log.warm(self.name):
            return
        if self.index.backlog:
            return
        may_remove = partial(self.log.may_remove, self.name)
        facts = self.roster.lost(self.index)
        facts += self.roster.gone(self.index, may_remove, monotonic())
        if facts:
            self._enrolled = self.log.append(self.name, facts)

    def _capacity(self, instance: Instance) -> int | None:
        """Blocks that it can hold; None as long as it may still say so itself."""
        config = self.config
        blocks = self.members.capacity(instance, config.block_size, config.capacity_blocks)
        if blocks is None or instance.id not in self.assured:
            return blocks
        return blocks * ASSURED_ROOM

    def usable(self, instances: Sequence[Instance], now: float) -> Sequence[Instance]:
        """Those of them that a request should go to: never empty where they are not."""
        return self.members.conditions.usable(instances, now)

    def headers_of(self, instance: InstanceId) -> Mapping[str, str]:
        """Request headers that lead to the instance, besides its endpoint."""
        listed = self.members.of(instance)
        return listed.headers if listed is not None else {}

    def view(
        self,
        eligible: Sequence[Instance],
        cached: Mapping[InstanceId, Cached],
        now: float,
        prefix: BlockKey | None = None,
    ) -> PoolView:
        """What the policy sees: the eligible instances with their load.

        cached: what an instance holds of the prompt; absent: nothing. prefix: the last block of the
        longest that any holds.
        """
        events = self.config.events
        slow_price = events.cpu_price if events is not None else 0.0
        ours = self.outlook.loads([instance.id for instance in eligible], now)
        loads = self.members.conditions.loads(eligible, ours, now)
        candidates = [
            Candidate(instance.id, instance.endpoint, held.tokens, held.slow * slow_price)
            for instance in eligible
            for held in (cached.get(instance.id, NOTHING),)
        ]
        return self.outlook.view(candidates, loads, len(self.instances), now, prefix)

    def describe(self, now: float) -> dict[str, object]:
        """The pool as the admin port shows it: names, counts and load."""
        outlook, names = self.outlook, [instance.id for instance in self.instances]
        speeds = [outlook.rates.of(name) for name in names]
        return {
            "name": self.name,
            "models": sorted(self.model_names),
            "models_loaded": sorted(self.models),
            "block_size": self.config.block_size,
            "speeds_learnt": outlook.rates.are_learnt,
            "waiting": len(self.line or ()),
            "utilisation": round(outlook.utilisation.at(now, len(names)), 3),
            "instances": [
                {
                    "name": instance.id,
                    "endpoint": instance.endpoint,
                    "blocks": self.index.held_blocks(instance.id),
                    "in_flight": load.in_flight,
                    "waiting_tokens": round(load.waiting),
                    "prefill_rate": round(speed.rate),
                    "prefill_overhead_ms": round(speed.overhead_s * 1000, 1),
                    **self.members.describe(instance, now),
                }
                for instance, load, speed in zip(
                    self.instances, outlook.loads(names, now), speeds, strict=True
                )
            ],
        }
