"""Names that several parts of the bootstrap must agree on; the picker protocol's are in stream."""

METADATA_NAMESPACE = "envoy.lb"
"""Dynamic metadata in which the picker puts its pick."""

SUBSET_NAMESPACE = "envoy.lb.subset_hint"
"""Metadata in which a proxy says which endpoints are eligible."""

ENDPOINT_KEY = "x-gateway-destination-endpoint"
"""Header, and key of the metadata, with the picked endpoints in order of preference."""

PICKERS_CLUSTER = "homing"
ENGINES_CLUSTER = "engines"

CONTROL_HEADERS = (
    ENDPOINT_KEY,
    "x-gateway-destination-endpoint-subset",
    "test-epp-endpoint-selection",
)
"""Request headers that steer a pick; a client's own are removed."""

CONTROL_PREFIX = "x-homing-"
"""Begins every further header of that kind."""
