"""Follows an InferencePool and its pods, or the pods with certain labels."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from extproc.config import Events
from extproc.config import KubernetesDiscovery as Settings
from extproc.engines.discovery.interface import DiscoveryError
from extproc.engines.discovery.kubernetes.client import Client, connect
from extproc.engines.discovery.kubernetes.objects import InferencePool, Layout, Pod, instances_of
from extproc.engines.discovery.kubernetes.reflector import Reflector
from extproc.engines.instances import Instance

POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools"
PODS = "/api/v1/namespaces/{}/pods"


class _Wanted(NamedTuple):
    """Which pods, and which of their ports."""

    selector: str
    ports: tuple[int, ...]


class KubernetesDiscovery:
    """An instance for each engine of each pod that has an address and has not ended.

    A pod that is not ready is `starting`, one that is being deleted `draining`.

    scraped: whether the pool's engines have metrics. events: its KV-cache events, if any.
    """

    def __init__(self, settings: Settings, scraped: bool, events: Events | None) -> None:
        self._settings = settings
        self._scraped = scraped
        self._events = events

    async def watch(self) -> AsyncGenerator[Sequence[Instance], None]:
        """As `Discovery.watch`."""
        async with connect(self._settings.kubeconfig) as client:
            following = _Following(client, self._settings)
            told: Sequence[Instance] | None = None
            try:
                while True:
                    pods, ports = await following.changed()
                    layout = Layout(ports, self._settings.ranks, self._scraped, self._events)
                    instances = instances_of(pods, layout)
                    if instances != told:
                        told = instances
                        yield instances
            finally:
                await following.close()


class _Following:
    """The reflectors of one connection: of the pool, if one is named, and of its pods."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._namespace = settings.namespace or client.namespace
        self._change = asyncio.Event()
        self._pods: Reflector[Pod] | None = None
        self._selector: str | None = None
        self._tasks: dict[str, asyncio.Future[None]] = {}
        self._pool: Reflector[InferencePool] | None = None
        if settings.pool is not None:
            query = {"fieldSelector": f"metadata.name={settings.pool}"}
            self._pool = Reflector(
                client, InferencePool, POOLS.format(self._namespace), query, self._change.set
            )
            self._tasks["pool"] = asyncio.ensure_future(self._pool.run())
        else:
            self._change.set()

    async def changed(self) -> tuple[dict[str, Pod], tuple[int, ...]]:
        """The pods, by name, and their ports: once they are known, and after each change.

        Raises DiscoveryError where the API server is away, refuses, or has no such pool.
        """
        while True:
            await self._wait()
            wanted = self._wanted()
            if wanted is None:
                continue
            if wanted.selector != self._selector:
                await self._select(wanted.selector)
            if self._pods is not None and self._pods.listed:
                return self._pods.objects, wanted.ports

    async def close(self) -> None:
        """End all that runs."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _wait(self) -> None:
        change = asyncio.ensure_future(self._change.wait())
        try:
            running: list[asyncio.Future[Any]] = [change, *self._tasks.values()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        for task in self._tasks.values():
            if task.done():
                task.result()  # raises: it ends in no other way
        self._change.clear()

    def _wanted(self) -> _Wanted | None:
        settings = self._settings
        if self._pool is None:
            return _Wanted(_spell(settings.labels), settings.ports)
        if not self._pool.listed:
            return None
        pool = self._pool.objects.get(settings.pool or "")
        if pool is None:
            raise DiscoveryError(f"no InferencePool {settings.pool} in {self._namespace}")
        labels = pool.spec.selector.match_labels
        if not labels:
            raise DiscoveryError(f"InferencePool {settings.pool} selects by no label")
        return _Wanted(_spell(labels), tuple(port.number for port in pool.spec.target_ports))

    async def _select(self, selector: str) -> None:
        """Other pods from now on; those of before stay until these are listed."""
        if (old := self._tasks.pop("pods", None)) is not None:
            old.cancel()
            await asyncio.gather(old, return_exceptions=True)
        self._selector = selector
        self._pods = Reflector(
            self._client,
            Pod,
            PODS.format(self._namespace),
            {"labelSelector": selector},
            self._change.set,
        )
        self._tasks["pods"] = asyncio.ensure_future(self._pods.run())


def _spell(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
