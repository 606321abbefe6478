"""Names that several parts of the bootstrap must agree on."""

PICKERS_CLUSTER = "homing"
ENGINES_CLUSTER = "engines"
