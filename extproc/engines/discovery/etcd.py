"""Discovery in etcd: what the sidecars of engines say of them (`registration`)."""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from pydantic import ValidationError

from extproc.config import EtcdLog, ListedInstance
from extproc.engines.discovery.entries import instance_of
from extproc.engines.discovery.interface import DiscoveryError
from extproc.engines.instances import Instance, State
from extproc.log.etcd.client import CALL_TIMEOUT_S, Away, Client
from extproc.log.etcd.keys import Keys
from extproc.log.etcd.reading import pages
from extproc.telemetry import LogOnce
from extproc.terms import InstanceId

logger = logging.getLogger("homing.discovery")


class EtcdDiscovery:
    """An instance for each key under `<prefix>/<pool>/instances/`, called as its last part.

    An entry is JSON, as in a file of instances; one that cannot be read is left out and said once.
    A key ends with its lease, so an engine whose machine has died is gone after some seconds.

    scraped: whether the pool's engines have metrics.
    """

    def __init__(self, settings: EtcdLog, pool: str, scraped: bool) -> None:
        self._settings = settings
        self._prefix = Keys(settings.prefix, pool).instances
        self._scraped = scraped
        self._once = LogOnce(logger)

    async def watch(self) -> AsyncGenerator[Sequence[Instance], None]:
        """As `Discovery.watch`."""
        client = Client(self._settings)
        try:
            async with aclosing(self._follow(client)) as lists:
                async for entries in lists:
                    yield self._read(entries)
        except Away as away:
            raise DiscoveryError(f"etcd: {away}") from None
        finally:
            await client.close()

    async def _follow(self, client: Client) -> AsyncGenerator[Mapping[bytes, bytes], None]:
        """Names and values, as of a revision, and after each change from there on."""
        prefix = self._prefix
        answer = await client.call(lambda c: c.kv.get(prefix, timeout=CALL_TIMEOUT_S))
        revision = answer.header.revision
        entries: dict[bytes, bytes] = {}
        async for page in pages(client, prefix, revision):
            entries |= {kv.key[len(prefix) :]: kv.value for kv in page}
        yield entries
        async with (
            client.using() as connection,
            aclosing(connection.watch(prefix, revision + 1)) as responses,
        ):
            async for response in responses:
                for event in response.events:
                    name = event.kv.key[len(prefix) :]
                    if event.type == 0:
                        entries[name] = event.kv.value
                    else:
                        entries.pop(name, None)
                if response.events:
                    yield entries

    def _read(self, entries: Mapping[bytes, bytes]) -> list[Instance]:
        instances = []
        for key, value in sorted(entries.items()):
            name = key.decode("utf-8", "replace")
            try:
                entry = ListedInstance.model_validate_json(value)
            except ValidationError as error:
                wrong = ", ".join(str(one["loc"][0]) for one in error.errors() if one["loc"])
                self._once.warning(name, "instance %s is left out: %s", name, wrong or "no entry")
                continue
            named = entry.model_copy(update={"name": InstanceId(name)})
            instances.append(instance_of(named, self._scraped, State(entry.state)))
        return instances
