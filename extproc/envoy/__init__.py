"""Writes the Envoy bootstrap for a configuration (`homing envoy-config`)."""

from extproc.envoy.bootstrap import bootstrap
from extproc.envoy.text import to_yaml

__all__ = ["bootstrap", "to_yaml"]
