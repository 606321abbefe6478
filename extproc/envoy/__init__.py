"""Writes the Envoy bootstrap for a configuration (`homing envoy-config`)."""

from extproc.envoy.bootstrap import bootstrap, bootstrap_yaml

__all__ = ["bootstrap", "bootstrap_yaml"]
