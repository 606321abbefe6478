"""Names that several parts of the bootstrap must agree on."""

from extproc.engines.endpoints_file import CLUSTER

PICKERS_CLUSTER = "homing"
ENGINES_CLUSTER = CLUSTER
