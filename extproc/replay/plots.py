"""A replay's plots as SVG, drawn by matplotlib (the extra `report`)."""

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from extproc.replay.curves import SHARES, Curves

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
"""The look: to be entered with `matplotlib.rc_context` while a figure is made."""

OWN = "priced"
_IDS = re.compile(r'(\bid="|href="#|url\(#)')
_PATHS = re.compile(r' d="[^"]*"')
_FINE = re.compile(r"(\.\d)\d+")


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element; the same bytes for the same figure.

    name: goes before every id, so that several can stand in one page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=nothing, bbox_inches="tight")
    text = file.getvalue()
    # A tenth of a point is fine enough, and half the size.
    text = _PATHS.sub(lambda path: _FINE.sub(r"\1", path[0]), text[text.index("<svg") :])
    lines = (line.rstrip() for line in text.splitlines())
    return _IDS.sub(rf"\g<1>{name}-", "\n".join(lines) + "\n")


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each policy's line looks: the product's own is black and thick."""
    colours = mpl.colormaps["tab20"]
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    others = [name for name in names if name != OWN]
    found: dict[str, dict[str, Any]] = {
        name: {
            "color": colours(order[at % 20]),
            "linewidth": 1.3,
            "linestyle": ("-", "--", ":")[at // 20 % 3],
        }
        for at, name in enumerate(others)
    }
    found[OWN] = {"color": "black", "linewidth": 2.2, "zorder": 3}
    return found


def ttft(drawn: Mapping[str, Curves]) -> Figure:
    """The distribution of TTFT: share of the requests against seconds, on a log axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2))
        axes = figure.subplots()
        for name, look in _in_order(drawn):
            axes.plot(drawn[name].ttft, SHARES, label=name, **look)
        axes.set(xscale="log", xlabel="TTFT, seconds", ylabel="share of requests", ylim=(0, 1))
        # The few shortest would take most of a log axis.
        axes.set_xlim(left=min(np.interp(0.01, SHARES, each.ttft) for each in drawn.values()))
        axes.xaxis.set_major_formatter("{x:g}")
        _legend(axes)
    return figure


def hit(drawn: Mapping[str, Curves]) -> Figure:
    """The hit ratio over time."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.4))
        axes = figure.subplots()
        for name, look in _in_order(drawn):
            axes.plot(drawn[name].ends, drawn[name].hit, label=name, **look)
        axes.set(xlabel="time, seconds", ylabel="cached of prompt tokens", ylim=(0, None))
        axes.set_xlim(left=0)
        _legend(axes)
    return figure


def load(drawn: Mapping[str, Curves], columns: int = 3) -> Figure:
    """Each engine's load over time, a panel a policy: dark is busy."""
    names = [name for name, _ in _in_order(drawn)]
    rows = -(-len(names) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8.6, 0.3 + 1.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, name in zip(panels.flat, names, strict=False):
            shown, end = drawn[name].load, float(drawn[name].ends[-1])
            image = axes.imshow(
                shown,
                aspect="auto",
                interpolation="nearest",
                cmap="inferno_r",
                vmin=0.0,
                vmax=1.0,
                extent=(0.0, end, len(shown) - 0.5, -0.5),
            )
            axes.set_title(name)
        for axes in panels.flat[len(names) :]:
            axes.set_axis_off()
        figure.supylabel("engine")
        figure.supxlabel("time, seconds")
        figure.colorbar(image, ax=panels, label="share of time in prefill")
    return figure


def _in_order(drawn: Mapping[str, Curves]) -> list[tuple[str, dict[str, Any]]]:
    known = looks(drawn)
    return [(name, known[name]) for name in drawn]


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
