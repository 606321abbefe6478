"""The report of a replay: one HTML file that needs nothing else (the extra `report`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from extproc import __version__
from extproc.replay import plots
from extproc.replay.curves import Curves
from extproc.replay.outcome import Summary

_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True, slots=True)
class _Column:
    """A figure of a summary. places: after the point; a share is shown in percent."""

    title: str
    field: str
    places: int
    share: bool = False
    most: bool = False

    def text(self, value: float) -> str:
        return f"{value:.{self.places}%}" if self.share else f"{value:.{self.places}f}"


_COLUMNS = (
    _Column("hit", "hit", 1, share=True, most=True),
    _Column("mean", "ttft_mean", 3),
    _Column("p50", "ttft_p50", 3),
    _Column("p90", "ttft_p90", 3),
    _Column("p99", "ttft_p99", 3),
    _Column("≤ 2 s", "within_2s", 1, share=True, most=True),
    _Column("≤ 5 s", "within_5s", 1, share=True, most=True),
    _Column("uneven", "imbalance", 2),
    _Column("prefill", "utilisation", 1, share=True),
)


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    best: bool


def page(
    title: str,
    facts: Mapping[str, str],
    summaries: Mapping[str, Summary],
    drawn: Mapping[str, Curves],
) -> str:
    """The page: the policies by rising mean TTFT, in a table and in plots.

    title: what was replayed; facts: on what, shown as they are. summaries, drawn: by policy.
    """
    order = sorted(summaries, key=lambda name: summaries[name].ttft_mean)
    curves = {name: drawn[name] for name in order}
    shown = {
        name: plots.svg(getattr(plots, name)(curves), name) for name in ("ttft", "hit", "load")
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text()).render(
        title=title,
        facts=facts,
        columns=["policy", *(column.title for column in _COLUMNS)],
        rows={name: _cells(summaries[name], summaries) for name in order},
        plots={name: Markup(text) for name, text in shown.items()},  # noqa: S704 - our own
        own=plots.OWN,
        version=__version__,
    )


def _cells(summary: Summary, all_of_them: Mapping[str, Summary]) -> list[_Cell]:
    cells = []
    for column in _COLUMNS:
        text = column.text(getattr(summary, column.field))
        others = [getattr(each, column.field) for each in all_of_them.values()]
        best = column.text(max(others) if column.most else min(others))
        cells.append(_Cell(text, text == best and len(others) > 1))
    return cells
