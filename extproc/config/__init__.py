"""One YAML file, typed and checked; errors name the line and the field."""

from extproc.config.load import load_config
from extproc.config.model import (
    Config,
    Drain,
    EnvoyOptions,
    EnvoyTls,
    EtcdLog,
    EtcdTls,
    Events,
    HubFiles,
    Instance,
    Limits,
    Log,
    MemoryLog,
    Model,
    Pool,
    Proxy,
    TlsFiles,
    Tracing,
)

__all__ = [
    "Config",
    "Drain",
    "EnvoyOptions",
    "EnvoyTls",
    "EtcdLog",
    "EtcdTls",
    "Events",
    "HubFiles",
    "Instance",
    "Limits",
    "Log",
    "MemoryLog",
    "Model",
    "Pool",
    "Proxy",
    "TlsFiles",
    "Tracing",
    "load_config",
]
