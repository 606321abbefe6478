"""How long each stage of one pick took: two clock reads a stage, no telemetry library.

The telemetry package turns the record into spans and histograms afterwards, so the stages cost
the same with tracing on and off.
"""

from dataclasses import dataclass, field
from time import time_ns
from types import TracebackType


@dataclass(slots=True)
class Stages:
    """Stages of one pick in the order they ended; times are Unix nanoseconds."""

    spans: list[tuple[str, int, int]] = field(default_factory=list)

    def stage(self, name: str) -> "Stage":
        """Record what a `with` block takes under `name`, also when it raises."""
        return Stage(self.spans, name)

    def ended(self, name: str, start: int) -> None:
        """Record one that began at `start` and ends now."""
        self.spans.append((name, start, time_ns()))


class Stage:
    """One stage while it runs. A class: a generator would cost three times as much."""

    __slots__ = ("_name", "_spans", "_start")

    def __init__(self, spans: list[tuple[str, int, int]], name: str) -> None:
        self._spans = spans
        self._name = name

    def __enter__(self) -> None:
        self._start = time_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spans.append((self._name, self._start, time_ns()))
