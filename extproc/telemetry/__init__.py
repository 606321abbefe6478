"""What operators see: metrics, traces, log lines."""

from extproc.telemetry.logs import LogOnce, configure
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.tracing import Attributes, OtlpTracer, Tracer

__all__ = ["Attributes", "LogOnce", "Metrics", "OtlpTracer", "Tracer", "configure"]
