"""Circles with names: one value against another, a circle for each run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from prefcli.report.panels import PanelData
from prefcli.report.plots.frame import BOLD, TOP, WIDTH, limits, linear_ticks, log_ticks, make_frame
from prefcli.report.plots.plot import Dot, Plot

_BOTTOM = 196
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


def scatter_plot(
    panel: PanelData, x_title: str, y_title: str, open_lines: Collection[int] = ()
) -> Plot:
    """Lay out a panel whose lines have one point each, (x, y). open_lines: have open circles."""
    points = [(line, *line.held_out[0]) for line in panel.lines]
    x_ends = limits([x for _, x, _ in points], log_scale=panel.log_scale)
    y_ends = limits([y for _, _, y in points if y is not None], log_scale=False)
    plot, x, y = make_frame(
        panel.title,
        x_ends,
        y_ends,
        lambda _: log_ticks(*x_ends) if panel.log_scale else linear_ticks(*x_ends, 5),
        linear_ticks(*y_ends, 5),
        right=WIDTH - 10 - BOLD * len(x_title),
        bottom=_BOTTOM,
        x_title=x_title,
        x_log=panel.log_scale,
    )
    dots = [
        Dot(
            x.place(at),
            y.place(value or 0.0),
            line.colour,
            f"{line.label}\n{x_title}: {at:.4g}\n{y_title}: {value:.4g}",
            is_filled=place not in open_lines,
        )
        for place, (line, at, value) in enumerate(points)
    ]
    inside = (plot.left, TOP, plot.right, _BOTTOM)
    named = _named([line.label for line in panel.lines], dots, inside)
    return replace(plot, dots=named, names_lines=all(dot.label for dot in named))


def _named(names: Sequence[str], dots: Sequence[Dot], frame: Box) -> list[Dot]:
    """Write each name next to its circle, if it covers nothing there."""
    left, top, right, bottom = frame
    covered = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot in dots]
    result = []
    for name, dot in zip(names, dots, strict=True):
        width = BOLD * len(name)
        for x, y, align, start in (
            (dot.x + 8, dot.y + 4, "start", dot.x + 8),
            (dot.x - 8, dot.y + 4, "end", dot.x - 8 - width),
            (dot.x, dot.y - 9, "middle", dot.x - width / 2),
            (dot.x, dot.y + 17, "middle", dot.x - width / 2),
        ):
            box = (start, y - 10, start + width, y + 2)
            inside = left <= box[0] and box[2] <= right and top - 12 <= box[1] and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in covered):
                covered.append(box)
                label_y = round(y, 2)
                dot = dot._replace(label=name, label_x=round(x, 2), label_y=label_y, align=align)
                break
        result.append(dot)
    return result


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
