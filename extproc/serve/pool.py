"""One pool as this process serves it: its models, instances, index, log and load."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from extproc import config as configuration
from extproc.index import Capacity, Fact, Joined, Left, PrefixIndex, Tier
from extproc.log import FactLog
from extproc.prompt import ServedModel
from extproc.routing import POLICIES, InstanceView, LoadLedger, Policy, PoolView, Utilisation
from extproc.serve.digests import Digests
from extproc.terms import Endpoint, InstanceId


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance that the configuration lists."""

    id: InstanceId
    endpoint: Endpoint


@dataclass(slots=True)
class Pool:
    """Instances that serve the same models, and what is known of them.

    models: name or alias → model; one whose tokenizer is not loaded yet is absent.
    renames: alias → name, of the models whose requests are forwarded under their name.
    secret: part of every root seed, so that a client cannot compute keys.
    """

    config: configuration.Pool
    log: FactLog
    index: PrefixIndex
    digests: Digests
    utilisation: Utilisation
    policy: Policy = field(default_factory=POLICIES["priced"])
    load: LoadLedger = field(default_factory=LoadLedger)
    models: dict[str, ServedModel] = field(default_factory=dict)
    model_names: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()
    renames: dict[str, str] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @property
    def name(self) -> str:
        """Unique among the pools."""
        return self.config.name

    def append(self, facts: Sequence[Fact]) -> None:
        """Hand facts to the log, which gives them to the index in log order."""
        if facts:
            self.log.append(self.name, facts)

    def configure(self, listed: configuration.Pool) -> None:
        """Take over what the configuration lists: new instances join, missing ones leave.

        One that stays keeps what it is known to hold. Another endpoint under the same name is a
        new instance, and with blocks of another size all are.
        """
        wanted = {entry.id: Instance(entry.id, entry.endpoint) for entry in listed.instances}
        same_blocks = listed.block_size == self.config.block_size
        stay = set(self.instances) & set(wanted.values()) if same_blocks else set()
        facts: list[Fact] = [Left(gone.id) for gone in self.instances if gone not in stay]
        for entry in listed.instances:
            if wanted[entry.id] not in stay:
                facts.append(Joined(entry.id, listed.block_size))
            facts.append(Capacity(entry.id, Tier.GPU, listed.capacity_of(entry)))
        self.append(facts)
        self.config = listed
        self.instances = tuple(wanted.values())
        self.adapters = frozenset(name for model in listed.models for name in model.adapters)
        self.model_names = frozenset(name for model in listed.models for name in model.names)
        self.renames = {
            alias: model.name
            for model in listed.models
            if model.rewrite_aliases
            for alias in model.aliases
        }

    def view(
        self, eligible: Iterable[Instance], cached: Mapping[InstanceId, int], now: float
    ) -> PoolView:
        """What the policy sees: the eligible instances with their load.

        cached: tokens of the prompt that an instance holds; absent = 0.
        """
        rate = self.config.prefill_rate
        views = []
        for instance in eligible:
            waiting, in_flight = self.load.of(instance.id, now, rate)
            views.append(
                InstanceView(
                    instance=instance.id,
                    endpoint=instance.endpoint,
                    cached_tokens=cached.get(instance.id, 0),
                    waiting_tokens=waiting,
                    in_flight=in_flight,
                    prefill_rate=rate,
                )
            )
        return PoolView(views, rate, self.utilisation.at(now, len(self.instances)))

    def describe(self, now: float) -> dict[str, object]:
        """The pool as the admin port shows it: names, counts and load."""
        rate = self.config.prefill_rate
        load = {instance.id: self.load.of(instance.id, now, rate) for instance in self.instances}
        return {
            "name": self.name,
            "models": sorted(self.model_names),
            "models_loaded": sorted(self.models),
            "block_size": self.config.block_size,
            "utilisation": round(self.utilisation.at(now, len(self.instances)), 3),
            "instances": [
                {
                    "name": instance.id,
                    "endpoint": instance.endpoint,
                    "blocks": self.index.held_blocks(instance.id),
                    "in_flight": load[instance.id][1],
                    "waiting_tokens": round(load[instance.id][0]),
                }
                for instance in self.instances
            ],
        }
