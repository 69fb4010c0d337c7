"""matplotlib's drawings as pieces of a page: its colours and fonts are the page's."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefcli.report.panels import RUN_COLOURS, Line, Panel, Point

# Stand-ins that no palette has; the page's style sheet gives each its colour, light or dark.
_NAMES = (
    *("ink", "bar", "mark", "quiet", "chosen", "rejected", "first", "second", "third"),
    *("note", "warning", "error", *(f"run{at}" for at in range(RUN_COLOURS))),
)
_COLOUR = {name: f"#0102{at + 3:02x}" for at, name in enumerate(_NAMES)}
_INK, _BAR, _MARK = _COLOUR["ink"], _COLOUR["bar"], _COLOUR["mark"]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def histogram(
    labels: Sequence[str], counts: Sequence[int], *, cut_after: int | None, cut_label: str
) -> str:
    """Rows by length as inline SVG; a line after bin `cut_after`, where max_length is."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{labels}{counts}"}):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(range(len(counts)), counts, width=0.92, color=_BAR)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=7.5)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.tick_params(length=0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        if cut_after is not None:
            axes.axvline(cut_after + 0.5, color=_MARK, linestyle="--", linewidth=1.2)
            left = cut_after + 0.5 > len(labels) / 2
            axes.text(
                cut_after + 0.5,
                1.0,
                f"{cut_label} " if left else f" {cut_label}",
                color=_MARK,
                ha="right" if left else "left",
                va="bottom",
                transform=axes.get_xaxis_transform(),
            )
        return _inline(figure, f"rows by tokens, {cut_label}")


class Mark(NamedTuple):
    """Something said at a step: its number in the list below the pictures."""

    step: float
    number: str
    colour: str


def curves(panel: Panel, marks: Sequence[Mark], ends: tuple[float, float]) -> str:
    """A panel as inline SVG: lines of training, ringed points of evaluations, dotted marks.

    ends: the first and last step of all pictures of the page.
    """
    salt = f"{panel.title}{panel.lines}"
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(3.9, 2.1), layout="constrained")
        axes = figure.add_subplot()
        if panel.log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        if panel.across is not None:
            axes.axhline(panel.across, color=_COLOUR["quiet"], linewidth=0.8, linestyle=(0, (4, 3)))
        for line in panel.lines:
            _draw(axes, line)
        axes.set_xlim(*_with_room(ends))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.tick_params(length=2.5, width=0.6)
        for mark in marks:
            axes.axvline(mark.step, color=_COLOUR[mark.colour], linewidth=0.9, linestyle=":")
            axes.text(
                mark.step,
                1.0,
                mark.number,
                color=_COLOUR[mark.colour],
                fontsize=8,
                ha="center",
                va="bottom",
                transform=axes.get_xaxis_transform(),
            )
        return _inline(figure, f"{panel.title} by step")


_LARGEST = 1e38
"""float32 ends a little above."""


def _draw(axes: Axes, line: Line) -> None:
    colour = _COLOUR[line.colour]
    if line.train:
        x, y = _numbers(line.train)
        # A lone value between gaps would be no line at all.
        dot = "." if len(x) < 3 or any(map(math.isnan, y)) else None
        axes.plot(x, y, color=colour, linewidth=1.2, marker=dot, markersize=3)
    if line.held_out:
        x, y = _numbers(line.held_out)
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=0.9,
            linestyle=(0, (2, 2)),
            marker="o",
            markersize=4 if len(x) < 40 else 2.5,
            markerfacecolor="none",
        )


def _numbers(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """x and y; what no axis can span is a gap, as what is not finite."""
    drawn = [math.nan if y is None or abs(y) > _LARGEST else y for _, y in points]
    return [x for x, _ in points], drawn


def _with_room(ends: tuple[float, float]) -> tuple[float, float]:
    room = max(ends[1] - ends[0], 1) * 0.03
    return ends[0] - room, ends[1] + room


def _inline(figure: Figure, label: str) -> str:
    text = io.StringIO()
    nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # HTML knows the namespaces; the size is the page's affair.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\s(?:height|width)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:height|width)="[^"]*"', r"\1", svg)
    for name, stand_in in _COLOUR.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    # A picture's groups are never referred to, and a hundredth of a point is seen by nobody.
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    return svg.strip()
