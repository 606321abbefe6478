"""The proxy's subset hint: which instances may be picked at all (PROTOCOLS.md §2)."""

from collections.abc import Iterable, Sequence

from extproc.engines import Instance
from extproc.errors import NoEndpoint


def eligible(instances: Sequence[Instance], subset: Sequence[str] | None) -> Sequence[Instance]:
    """The instances that the hint allows: all without a hint.

    subset: entries as `matching` reads them. Raises NoEndpoint where none is left.
    """
    left = instances if subset is None else matching(instances, subset)
    if not left:
        raise NoEndpoint(
            "no endpoint is listed" if not instances else "the subset hint leaves no endpoint"
        )
    return left


def matching(instances: Iterable[Instance], entries: Iterable[str]) -> list[Instance]:
    """The instances that the entries name, in their own order.

    entries: `ip:port`, or an ip that stands for all its ports (IPv6 with or without brackets);
        several with commas between them, as some proxies write them into one item of a list.
    """
    wanted = {part.strip() for entry in entries for part in entry.split(",")}
    return [
        instance
        for instance in instances
        if instance.endpoint in wanted or not wanted.isdisjoint(_addresses(instance))
    ]


def _addresses(instance: Instance) -> tuple[str, str]:
    """The endpoint's ip as a hint may write it: with and without brackets."""
    host = instance.endpoint.rpartition(":")[0]
    return host, host.strip("[]")
