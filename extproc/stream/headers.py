"""Every name on the wire that steers a pick or tells of one: headers, metadata, attributes."""

from typing import Final

DESTINATION: Final = "x-gateway-destination-endpoint"
"""Request header, and key in `envoy.lb`: the picked endpoints in order of preference, joined by
"," without spaces."""

SUBSET: Final = "x-gateway-destination-endpoint-subset"
"""Key in `envoy.lb.subset_hint`: the endpoints that the proxy allows for this request."""

SERVED: Final = "x-gateway-destination-endpoint-served"
"""Key in `envoy.lb` on the response headers: the endpoint that really answered."""

SCORES: Final = "x-gateway-destination-endpoint-scores"
"""Key in `envoy.lb`: what the pick was chosen by, for access logs."""

METADATA_NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"

UPSTREAM_ADDRESS: Final = "upstream.address"
"""Attribute with who answered, for proxies that set no `SERVED` metadata (Envoy is one)."""

UPSTREAM_ATTEMPTS: Final = "upstream.request_attempt_count"
"""Attribute with the number of engines that the proxy tried, retries included."""

RESPONSE_FLAGS: Final = "response.flags"
"""Attribute with what the proxy itself has to say of an answer, as bits; 0 for an engine's own."""

UPSTREAM_CONNECTION_FAILURE: Final = 0x20
"""The bit of `RESPONSE_FLAGS` that says that the last engine tried could not be connected to."""

ENGINE_RANK: Final = "x-data-parallel-rank"
"""Request header that chooses among data-parallel ranks behind one port (vLLM, SGLang)."""

POOL_NAMESPACE: Final = "homing"
POOL_KEY: Final = "pool"
"""Metadata of the request or of its route that names the pool, for operators with many."""

ROUTE_METADATA: Final = "xds.route_metadata"
"""Attribute with the route's metadata, in protobuf's text form."""

REQUEST_METHOD: Final = "request.method"
REQUEST_PATH: Final = "request.path"
"""Attributes that stand in for request headers which the proxy does not show."""

CONFORMANCE_SELECTION: Final = "test-epp-endpoint-selection"
"""Request header by which a conformance suite chooses the endpoints."""

CONFORMANCE_SERVED: Final = "x-conformance-test-served-endpoint"
"""Response header by which a conformance suite learns who answered."""

PATIENCE: Final = "x-homing-patience"
"""Initial metadata of the gRPC stream: how many seconds the proxy lets a message's time-out be
stretched to (its `max_message_timeout`). Without it nothing waits here."""

OWN_PREFIX: Final = "x-homing-"
"""Begins every header of our own."""

REASON: Final = "x-homing-reason"
"""Response header of a 429 or 503: why."""

CONTROL_HEADERS: Final = frozenset(
    (DESTINATION, SUBSET, SERVED, ENGINE_RANK, CONFORMANCE_SELECTION, CONFORMANCE_SERVED)
)
"""A client's own are removed from every request, with all that begins with `OWN_PREFIX`."""
