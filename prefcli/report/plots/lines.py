"""Lines over the steps: training rows, evaluations and health advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from prefcli.report.panels import Line, PanelData, Point, is_drawn
from prefcli.report.plots.frame import (
    BOLD,
    TEXT,
    TOP,
    WIDTH,
    Axis,
    in_powers_of_ten,
    limits,
    linear_ticks,
    log_ticks,
    make_frame,
)
from prefcli.report.plots.plot import EndLabel, Plot, Rule, Series, Strip

_LINE_HEIGHT = 13.0
_NAME = 14
"""Characters up to which the name of a line or a rule fits next to it."""
_STRIPS = 80
"""Parts of a plot with a text of their own."""
_X_TITLE = "step"
_RECENT = 0.9
"""Share of the steps after which an evaluation shows the end of a line."""
_LEAST_JOINED = 3
"""Evaluations from which a line joins them."""
_BOTTOM = 196


class Mark(NamedTuple):
    """A vertical line at the step of a health advice."""

    step: float
    number: str
    """Empty if the label of an earlier mark includes it."""
    rule: str
    """Its name is shown where there is room."""
    colour: str


def line_plot(
    panel: PanelData,
    marks: Sequence[Mark],
    steps: tuple[float, float],
    x_title: str = _X_TITLE,
) -> Plot:
    """Lay out a panel: training as lines, evaluations as circles, health advice as marks.

    steps: the first and last step of all plots of the page.
    """
    values = [y for line in panel.lines for _, y in line.points if is_drawn(y)]
    values += [] if panel.baseline is None else [panel.baseline]
    low, high = limits(values, log_scale=panel.log_scale)
    names_lines = len(panel.lines) > 1 and all(len(x.label) <= _NAME for x in panel.lines)
    labels = _last_values(panel.lines, names_lines=names_lines)
    room = max(steps[1] - steps[0], 1) * 0.03
    plot, x, y = make_frame(
        f"{panel.title} by {x_title}",
        (steps[0] - room, steps[1] + room),
        (low, high),
        lambda _: linear_ticks(steps[0], max(steps[1], steps[0] + 1), 5, integers=True),
        log_ticks(low, high) if panel.log_scale else linear_ticks(low, high, 5),
        right=WIDTH - 10 - BOLD * max(len(text) for text in (x_title, *(t for _, t, _ in labels))),
        bottom=_BOTTOM,
        x_title=x_title,
        y_log=panel.log_scale,
    )
    ends = [EndLabel(y.place(value), text, colour) for value, text, colour in labels]
    return replace(
        plot,
        series=[series for line in panel.lines for series in _series_of(line, x, y)],
        baseline=None if panel.baseline is None else y.place(panel.baseline),
        rules=_rules(marks, x, plot.right),
        ends=_spread(ends, TOP, _BOTTOM),
        names_lines=names_lines and len(ends) == len(panel.lines),
        strips=list(_strips(panel.lines, x, plot.left, plot.right, x_title)),
    )


def _last_values(lines: Sequence[Line], *, names_lines: bool) -> list[tuple[float, str, str]]:
    """Return (value, text, colour) at the end of each line.

    The value is of held-out rows, unless training continued for long after the last evaluation.
    """
    labels = []
    for line in lines:
        held_out, train = (
            [(x, y) for x, y in points if is_drawn(y)] for points in (line.held_out, line.train)
        )
        is_old = train and held_out and held_out[-1][0] < _RECENT * train[-1][0]
        shown = train if is_old or not held_out else held_out
        if shown:
            name = f"{line.label} " if names_lines else ""
            labels.append((shown[-1][1], f"{name}{_short(shown[-1][1])}", line.colour))
    return labels


def _spread(labels: Sequence[EndLabel], top: float, bottom: float) -> list[EndLabel]:
    """Move labels apart that would overlap; none if there are too many."""
    if len(labels) * _LINE_HEIGHT > bottom - top:
        return []
    ordered = sorted(labels, key=lambda label: label.y)
    places: list[float] = []
    for label in ordered:
        places.append(max(label.y, places[-1] + _LINE_HEIGHT if places else top))
    limit = bottom
    for at in reversed(range(len(places))):
        places[at] = min(places[at], limit)
        limit = places[at] - _LINE_HEIGHT
    return [label._replace(y=round(y, 2)) for label, y in zip(ordered, places, strict=True)]


def _rules(marks: Sequence[Mark], x: Axis, right: float) -> list[Rule]:
    """Lay out the marks; those with room before the next one have the name of their rule."""
    labelled = [x.place(mark.step) for mark in marks if mark.number]
    rules, place = [], 0
    for mark in marks:
        at, label, align = x.place(mark.step), mark.number, "middle"
        if mark.number:
            place += 1
            before = labelled[place - 2] if place > 1 else 0.0
            after = labelled[place] if place < len(labelled) else right
            long = f"{mark.number} {mark.rule}"
            width = TEXT * len(long)
            if at + width < after:
                label, align = long, "start"
            elif after == right and at - width > before + TEXT * _NAME:
                label, align = long, "end"
        rules.append(Rule(at, label, mark.colour, align))
    return rules


def _strips(
    lines: Sequence[Line], x: Axis, left: float, right: float, x_title: str
) -> Iterator[Strip]:
    """Yield parts of the plot, each with the values of all lines at its last step."""
    values: dict[float, list[str]] = {}
    for line in lines:
        for points, kind in ((line.train, ""), (line.held_out, " (held-out)")):
            for step, value in points:
                text = "not finite" if value is None else f"{value:.4g}"
                values.setdefault(step, []).append(f"{line.label}{kind}: {text}")
    steps = sorted(values)
    shown = steps[:: -(-len(steps) // _STRIPS)] if steps else []
    places = [x.place(step) for step in shown]
    edges = [left, *((a + b) / 2 for a, b in pairwise(places)), right]
    for step, start, end in zip(shown, edges, edges[1:], strict=False):
        text = "\n".join([f"{x_title} {step:g}", *values[step]])
        yield Strip(round(start, 2), round(end - start, 2), text)


def _short(value: float) -> str:
    """Return a value with three digits."""
    if 1e-3 <= abs(value) < 1000:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else in_powers_of_ten(value)


def _series_of(line: Line, x: Axis, y: Axis) -> Iterator[Series]:
    """Yield training rows, their trend if they are many, and held-out rows."""
    if line.train:
        yield _series(line.train, line.colour, x, y, "faint" if line.trend else "solid")
    if line.trend:
        yield _series(line.trend, line.colour, x, y, "solid")
    if line.held_out:
        yield _series(line.held_out, line.colour, x, y, "dashed")


def _series(
    points: Sequence[Point],
    colour: str,
    x: Axis,
    y: Axis,
    style: Literal["solid", "faint", "dashed"],
) -> Series:
    held_out = style == "dashed"
    places = [
        (x.place(step), y.place(value)) if value is not None and is_drawn(value) else None
        for step, value in points
    ]
    runs = [[place for place in run if place] for drawn, run in groupby(places, bool) if drawn]
    # A straight line between two evaluations would look like a measured trend.
    shortest = _LEAST_JOINED if held_out else 2
    path = "".join(
        "M" + "L".join(f"{px:g},{py:g}" for px, py in run) for run in runs if len(run) >= shortest
    )
    # A single value between gaps is not a line.
    circles = [
        place for run in runs if held_out or len(run) == 1 or len(points) < 3 for place in run
    ]
    radius = (3.0 if len(points) < 40 else 2.0) if held_out else 1.8
    return Series(colour, path, style, circles, radius)


def spark_path(values: Sequence[float | None], width: float, height: float) -> str:
    """Return the path of a small line without axes; empty for fewer than three values."""
    finite = [value for value in values if value is not None and is_drawn(value)]
    if len(finite) < _LEAST_JOINED:
        return ""
    low, high = min(finite), max(finite)
    x = Axis(0, len(finite) - 1, 1, width - 1)
    y = Axis(low, high if high > low else low + 1, height - 2, 2)
    return "M" + "L".join(f"{x.place(at):g},{y.place(v):g}" for at, v in enumerate(finite))
