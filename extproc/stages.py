"""How long each stage of one pick took: two clock reads a stage, no telemetry library.

The telemetry package turns the record into spans and histograms afterwards, so the stages cost
the same with tracing on and off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time_ns


@dataclass(slots=True)
class Stages:
    """Stages of one pick in the order they ended; times are Unix nanoseconds."""

    spans: list[tuple[str, int, int]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record what the block takes under `name`, also when it raises."""
        start = time_ns()
        try:
            yield
        finally:
            self.spans.append((name, start, time_ns()))
