"""matplotlib's drawings as pieces of a page: its colours and fonts are the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that no palette has; the page's style sheet gives each its colour, light or dark.
_INK, _BAR, _MARK = "#010203", "#010204", "#010205"
_VARIABLES = {_INK: "var(--ink)", _BAR: "var(--bar)", _MARK: "var(--mark)"}

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
        return _inline(figure)


def _inline(figure: Figure) -> str:
    text = io.StringIO()
    nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # HTML knows the namespaces; the size is the page's affair.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\s(?:height|width)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:height|width)="[^"]*"', r"\1", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg.strip()
