"""The fact log that the configuration asks for."""

from extproc import config
from extproc.errors import ConfigError
from extproc.log import FactLog, KeptLog, MemoryLog
from extproc.telemetry import Metrics


def fact_log(settings: config.Log, metrics: Metrics) -> FactLog:
    """Not open yet. Raises ConfigError where what it needs is not installed."""
    if isinstance(settings, config.EtcdLog):
        try:
            from extproc.log.etcd import EtcdLog
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"log.kind: etcd needs {error.name}; install it: pip install 'homing[etcd]'"
            ) from None
        return EtcdLog(settings, metrics)
    if isinstance(settings, config.MemoryLog) and settings.snapshot is not None:
        return KeptLog(
            settings.snapshot,
            settings.interval_s,
            lambda pool, result: metrics.log_snapshots.labels(pool, result).inc(),
        )
    return MemoryLog()
