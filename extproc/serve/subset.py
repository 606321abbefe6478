"""The proxy's subset hint: which instances may be picked at all (PROTOCOLS.md §2)."""

from collections.abc import Sequence

from extproc.errors import NoEndpoint
from extproc.serve.pool import Instance


def eligible(instances: Sequence[Instance], subset: Sequence[str] | None) -> Sequence[Instance]:
    """The instances that the hint allows: all without a hint.

    subset: entries `ip:port`, or an ip that stands for all its ports (IPv6 with or without
        brackets). Raises NoEndpoint where none is left.
    """
    if subset is None:
        left = instances
    else:
        wanted = {entry.strip() for entry in subset}
        left = [
            instance
            for instance in instances
            if instance.endpoint in wanted or not wanted.isdisjoint(_addresses(instance))
        ]
    if not left:
        raise NoEndpoint(
            "no endpoint is listed" if not instances else "the subset hint leaves no endpoint"
        )
    return left


def _addresses(instance: Instance) -> tuple[str, str]:
    """The endpoint's ip as a hint may write it: with and without brackets."""
    host = instance.endpoint.rpartition(":")[0]
    return host, host.strip("[]")
