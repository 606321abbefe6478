"""The endpoints of all engines as a file that Envoy's EDS reads.

https://www.envoyproxy.io/docs/envoy/latest/configuration/overview/xds_api: a DiscoveryResponse in
JSON; Envoy reads it anew when a file is moved over it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from extproc.config.addresses import split_endpoint
from extproc.terms import Endpoint

CLUSTER = "engines"
"""The cluster's name in Envoy."""


def write_endpoints(file: Path, endpoints: Iterable[Endpoint]) -> None:
    """Replace the file, if it says something else. Raises OSError."""
    text = _response(endpoints)
    try:
        if file.read_text() == text:
            return
    except OSError:
        pass
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(file)


def _response(endpoints: Iterable[Endpoint]) -> str:
    places = [split_endpoint(one) for one in sorted(set(endpoints))]
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": port}}}}
        for ip, port in places
    ]
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": CLUSTER,
        "endpoints": [{"lb_endpoints": hosts}],
    }
    return json.dumps({"resources": [assignment]}, indent=1) + "\n"
