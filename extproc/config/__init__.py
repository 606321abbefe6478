"""One YAML file, typed and checked; errors name the line and the field."""

from extproc.config.load import load_config
from extproc.config.model import (
    Config,
    EnvoyOptions,
    Instance,
    Limits,
    Log,
    MemoryLog,
    Model,
    Pool,
    Tracing,
)

__all__ = [
    "Config",
    "EnvoyOptions",
    "Instance",
    "Limits",
    "Log",
    "MemoryLog",
    "Model",
    "Pool",
    "Tracing",
    "load_config",
]
