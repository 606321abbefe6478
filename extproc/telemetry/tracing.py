"""One span a pick, its stages as children, in the trace of the request itself.

Off by default: without `tracing:` in the configuration nothing of OpenTelemetry is imported and
the path of a request meets one `None`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from extproc.errors import ConfigError
from extproc.stages import Stages

TRACE_HEADERS = ("traceparent", "tracestate")
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class Tracer(Protocol):
    """What the picker needs of a tracer."""

    def pick(
        self, headers: Mapping[str, str], stages: Stages, attributes: Attributes
    ) -> dict[str, str]:
        """Record a pick that just ended; returns the trace headers to pass upstream.

        headers: of the request; a W3C `traceparent` there makes the span its child.
        attributes: counts, names and reasons only, never text.
        """
        ...

    def shutdown(self) -> None:
        """Export what is left, for a bounded time."""
        ...


class OtlpTracer:
    """Exports over OTLP/gRPC in batches from a thread of its own; a full queue drops spans."""

    def __init__(self, endpoint: str, sample_ratio: float) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import (
                TraceContextTextMapPropagator,
            )
        except ImportError as missing:
            raise ConfigError(
                f"tracing needs the extra `otel`: pip install 'homing[otel]' ({missing.name})"
            ) from missing
        self._set_span = trace.set_span_in_context
        self._server_kind = trace.SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "homing"}),
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("homing")

    def pick(
        self, headers: Mapping[str, str], stages: Stages, attributes: Attributes
    ) -> dict[str, str]:
        """Record a pick that just ended; returns the trace headers to pass upstream."""
        parent = self._propagator.extract(headers)
        start = stages.spans[0][1] if stages.spans else None
        span = self._tracer.start_span(
            "homing.pick", parent, self._server_kind, attributes, start_time=start
        )
        context = self._set_span(span, parent)
        if span.is_recording():
            for name, begin, end in stages.spans:
                self._tracer.start_span(name, context, start_time=begin).end(end)
        span.end(stages.spans[-1][2] if stages.spans else None)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return carrier

    def shutdown(self) -> None:
        """Export what is left, for a bounded time."""
        self._provider.force_flush(2_000)
        self._provider.shutdown()
