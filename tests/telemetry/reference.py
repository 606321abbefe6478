"""docs/metrics.md, from the metrics themselves. `python -m tests.telemetry.reference` writes it."""

from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from extproc.telemetry import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """# Metrics

`GET /metrics` on the admin port, in Prometheus text. Written by
`python -m tests.telemetry.reference`. Labels are names and counts, never text of a request.

| name | type | labels | what |
|---|---|---|---|
"""


def page() -> str:
    """The page as it must be."""
    rows = []
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            suffix = "_total" if isinstance(metric, Counter) else ""
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            kind = metric._type
            rows.append(
                f"| `{metric._name}{suffix}` | {kind} | {labels} | {metric._documentation} |"
            )
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
