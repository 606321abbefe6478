"""What is read of Kubernetes' objects (core/v1, inference.networking.k8s.io/v1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Raw, Struct, field

from extproc.config import Events
from extproc.config.addresses import join_endpoint
from extproc.config.model import EventPorts
from extproc.engines.instances import Instance, State
from extproc.terms import Endpoint, InstanceId


class Meta(Struct, rename="camel"):
    """`metadata`, of objects and of lists."""

    name: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    continue_: str = field(default="", name="continue")


class Thing(Struct):
    """Any object."""

    metadata: Meta


class Condition(Struct, frozen=True):
    """One of a pod's conditions."""

    type: str
    status: str


class PodStatus(Struct, frozen=True, rename="camel"):
    """A pod's status."""

    pod_ip: str = field(default="", name="podIP")
    phase: str = ""
    conditions: tuple[Condition, ...] = ()


class Pod(Thing):
    """A pod."""

    status: PodStatus = PodStatus()

    @property
    def state(self) -> State | None:
        """How far it is; None for one that has no address yet, or has ended."""
        if not self.status.pod_ip or self.status.phase in ("Succeeded", "Failed"):
            return None
        if self.metadata.deletion_timestamp is not None:
            return State.DRAINING
        ready = any(one.type == "Ready" and one.status == "True" for one in self.status.conditions)
        return State.READY if ready else State.STARTING


class TargetPort(Struct):
    """One of a pool's ports."""

    number: int


class LabelSelector(Struct, rename="camel"):
    """By equality only, as InferencePools have."""

    match_labels: dict[str, str] = {}


class PoolSpec(Struct, rename="camel"):
    """What an InferencePool selects."""

    selector: LabelSelector
    target_ports: tuple[TargetPort, ...]


class InferencePool(Thing):
    """An InferencePool, v1 of the Gateway API Inference Extension."""

    spec: PoolSpec


T = TypeVar("T", bound=Thing)


class ObjectList(Struct, Generic[T]):
    """A page of a list."""

    metadata: Meta
    items: list[T]


class WatchEvent(Struct):
    """A line of a watch."""

    type: str
    object: Raw


class Status(Struct):
    """What a watch says when it cannot go on."""

    code: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pod's engines are laid out.

    ports: of its engines. ranks: data-parallel ranks behind each port that a request header
    chooses; None for none. events: the pool's; a pod's engines number their ports from there.
    """

    ports: Sequence[int]
    ranks: int | None
    scraped: bool
    events: Events | None


def instances_of(pods: Mapping[str, Pod], layout: Layout) -> list[Instance]:
    """Every port of every pod, and every rank behind it, in the order of the pods' names.

    Called as its pod; with its port where there are several, and with its rank where it has one.
    """
    return [
        instance
        for name in sorted(pods)
        if (state := pods[name].state) is not None
        for place, port in enumerate(layout.ports)
        for instance in _behind(name, pods[name].status.pod_ip, state, place, port, layout)
    ]


def _behind(
    name: str, ip: str, state: State, place: int, port: int, layout: Layout
) -> list[Instance]:
    endpoint = Endpoint(join_endpoint(ip, port))
    called = f"{name}:{port}" if len(layout.ports) > 1 else name
    ranks = range(layout.ranks) if layout.ranks is not None else (None,)
    return [
        Instance(
            id=InstanceId(called if rank is None else f"{called}/{rank}"),
            endpoint=endpoint,
            state=state,
            rank=rank,
            metrics=f"http://{endpoint}/metrics" if layout.scraped else None,
            events=_ports_of(layout.events, place),
        )
        for rank in ranks
    ]


def _ports_of(events: Events | None, place: int) -> EventPorts | None:
    """Engines of one pod number their event ports as their ranks, which are its ports in order."""
    if events is None or not place:
        return None
    replay = events.replay_port
    return EventPorts(
        port=events.port + place, replay_port=replay + place if replay is not None else None
    )
