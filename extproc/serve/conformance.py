"""What `conformance: true` adds to a pick: a request may name the endpoints that it wants.

The conformance suite of the Gateway API Inference Extension steers its requests this way, to see
that the proxy follows the picker (docs/conformance.md). Who answered is told by `stream`.
"""

from collections.abc import Mapping, Sequence

from extproc.engines import Instance
from extproc.errors import NoEndpoint
from extproc.serve.subset import matching
from extproc.stream.headers import CONFORMANCE_SELECTION


def chosen(instances: Sequence[Instance], headers: Mapping[str, str]) -> Sequence[Instance]:
    """The instances that the request's own header names; all where it names none.

    instances: what the pool and the proxy's subset hint allow: the header cannot go beyond it.
    Entries are written as in a subset hint; unknown ones are skipped, since the suite sends one
    list to the pickers of several pools. Raises NoEndpoint where none is left.
    """
    named = headers.get(CONFORMANCE_SELECTION, "")
    if not named.strip(" ,"):
        return instances
    if left := matching(instances, [named]):
        return left
    raise NoEndpoint(f"{CONFORMANCE_SELECTION} leaves no endpoint")
