"""Discovery by DNS: the addresses of a name, or its SRV records, asked for again and again."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from time import monotonic

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from extproc.config import DnsDiscovery as Settings
from extproc.config.addresses import join_endpoint, split_endpoint
from extproc.engines.discovery.interface import DiscoveryError
from extproc.engines.instances import Instance, State
from extproc.terms import Endpoint, InstanceId

PATIENCE_S = 5.0
"""So long one question may take, all name servers and tries together."""


class DnsDiscovery:
    """An instance for each address that the name has, called as its endpoint.

    One that is missing in an answer drains for `settings.linger_s` before it is gone: names drop a
    pod that is not ready for a moment, and its cache is as warm as before when it is back.

    scraped: whether the pool's engines have metrics.
    """

    def __init__(
        self, settings: Settings, scraped: bool, clock: Callable[[], float] = monotonic
    ) -> None:
        self._settings = settings
        self._scraped = scraped
        self._clock = clock
        self._seen: dict[Endpoint, float] = {}

    async def watch(self) -> AsyncGenerator[Sequence[Instance], None]:
        """As `Discovery.watch`."""
        resolver = self._resolver()
        told: Sequence[Instance] | None = None
        while True:
            now = self._clock()
            instances = self._listed(await self._endpoints(resolver), now)
            if instances != told:
                yield instances
                told = instances
            await asyncio.sleep(self._settings.every_s)

    def _listed(self, found: Iterable[Endpoint], now: float) -> list[Instance]:
        there = set(found)
        self._seen.update(dict.fromkeys(there, now))
        lost = [one for one, at in self._seen.items() if now - at > self._settings.linger_s]
        for endpoint in lost:
            del self._seen[endpoint]
        return [
            Instance(
                InstanceId(endpoint),
                endpoint,
                State.READY if endpoint in there else State.DRAINING,
                metrics=f"http://{endpoint}/metrics" if self._scraped else None,
            )
            for endpoint in sorted(self._seen)
        ]

    async def _endpoints(self, resolver: dns.asyncresolver.Resolver) -> Sequence[Endpoint]:
        """Where the name leads to; nowhere for a name that does not exist."""
        settings = self._settings
        try:
            if settings.records == "SRV":
                return await _services(resolver, settings.name)
            addresses = await _addresses(resolver, settings.name, settings.records)
        except dns.exception.DNSException as error:
            raise DiscoveryError(f"{settings.name}: {_words(error)}") from None
        assert settings.port is not None, "the configuration's checks demand it"
        return [Endpoint(join_endpoint(one, settings.port)) for one in addresses]

    def _resolver(self) -> dns.asyncresolver.Resolver:
        servers = [split_endpoint(one) for one in self._settings.nameservers]
        try:
            resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.exception.DNSException as error:
            raise DiscoveryError(_words(error)) from None
        if servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(*one) for one in servers]
        resolver.lifetime = PATIENCE_S
        resolver.timeout = PATIENCE_S / 2
        return resolver


async def _services(resolver: dns.asyncresolver.Resolver, name: str) -> Sequence[Endpoint]:
    """Of the SRV records with the lowest priority (RFC 2782): the others are for when they fail."""
    records = [record for record in await _ask(resolver, name, "SRV") if isinstance(record, SRV)]
    first = min((record.priority for record in records), default=0)
    used = [record for record in records if record.priority == first]
    hosts = [(record.target.to_text(), record.port) for record in used]
    found = await asyncio.gather(*(_host(resolver, host) for host, _ in hosts))
    return [
        Endpoint(join_endpoint(address, port))
        for (_, port), addresses in zip(hosts, found, strict=True)
        for address in addresses
    ]


async def _host(resolver: dns.asyncresolver.Resolver, host: str) -> Sequence[str]:
    """A machine's first address: two of one engine would be taken for two caches."""
    addresses = await _addresses(resolver, host, "A") or await _addresses(resolver, host, "AAAA")
    return sorted(addresses)[:1]


async def _addresses(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> Sequence[str]:
    return [record.to_text() for record in await _ask(resolver, name, kind)]


async def _ask(
    resolver: dns.asyncresolver.Resolver, name: str, kind: str
) -> Sequence[dns.rdata.Rdata]:
    """The records; none where the name does not exist, or has none of this kind."""
    try:
        return list(await resolver.resolve(name, kind, raise_on_no_answer=False, search=True))
    except dns.resolver.NXDOMAIN:
        return []


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
