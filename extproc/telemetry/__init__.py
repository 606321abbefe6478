"""What operators see: metrics, traces, log lines."""

from extproc.telemetry.logs import LogOnce, configure
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.tracing import OtlpTracer, Tracer

__all__ = ["LogOnce", "Metrics", "OtlpTracer", "Tracer", "configure"]
