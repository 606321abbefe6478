"""Which instances a pool has: one interface, and a file for each way to learn it."""

from extproc import config
from extproc.engines.discovery.dns import DnsDiscovery
from extproc.engines.discovery.entries import instance_of
from extproc.engines.discovery.file import FileDiscovery
from extproc.engines.discovery.interface import Discovery, DiscoveryError, follow
from extproc.engines.discovery.kubernetes import KubernetesDiscovery

__all__ = ["Discovery", "DiscoveryError", "discovery_of", "follow", "instance_of"]


def discovery_of(pool: config.Pool, log: config.Log) -> Discovery | None:
    """What finds the pool's instances; None where the configuration lists them.

    log: whose etcd a discovery in etcd uses.
    """
    scraped = pool.metrics != "off"
    match pool.discovery:
        case config.FileDiscovery() as found:
            return FileDiscovery(found.path, scraped)
        case config.DnsDiscovery() as found:
            return DnsDiscovery(found, scraped)
        case config.KubernetesDiscovery() as found:
            return KubernetesDiscovery(found, scraped, pool.events)
        case config.EtcdDiscovery():
            # Here, because it is an extra.
            from extproc.engines.discovery.etcd import EtcdDiscovery

            assert isinstance(log, config.EtcdLog), "the configuration's checks demand it"
            return EtcdDiscovery(log, pool.name, scraped)
        case _:
            return None
