"""Line plots and histograms as inline SVG, with the colours and fonts of the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from prefcli.report.panels import PanelData, Point

_LARGEST = 1e38
"""Values beyond this, about the largest float32, are gaps: an axis could not show the others."""
_TEXT = 6.3
"""Mean width of a character in units of the plot, at its font size of 12."""


class Mark(NamedTuple):
    """A vertical line at the step of a health advice, with the advice's number."""

    step: float
    number: str
    colour: str


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: float
    label: str


class Rule(NamedTuple):
    """A line across the plot."""

    at: float
    label: str
    colour: str
    align: str = "middle"


class Series(NamedTuple):
    """A line of the plot: an SVG path, and circles with the value they stand for."""

    colour: str
    path: str
    dashed: bool
    circles: list[tuple[float, float, str]]
    radius: float


class Bar(NamedTuple):
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Everything that the template plot.svg draws, in units of its view box."""

    label: str
    """A description for screen readers."""
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    slanted: bool = False
    """Whether the labels of the x axis are slanted."""
    bars: list[Bar] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    baseline: float | None = None
    rules: list[Rule] = field(default_factory=list)


class _Axis:
    """Values on a linear or logarithmic axis."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool = False
    ) -> None:
        self._log = log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Return where a value is, in units of the view box."""
        value = math.log10(value) if self._log else value
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 2)


def line_plot(panel: PanelData, marks: Sequence[Mark], steps: tuple[float, float]) -> Plot:
    """Lay out a panel: training as lines, evaluations as circles, health advice as marks.

    steps: the first and last step of all plots of the page.
    """
    width, height, top, bottom = 390, 220, 18, 196
    values = [y for line in panel.lines for _, y in line.points if _is_drawn(y)]
    values += [] if panel.baseline is None else [panel.baseline]
    low, high = _limits(values, panel)
    ticks = list(_log_ticks(low, high) if panel.log_scale else _linear_ticks(low, high, 5))
    left = 14 + _TEXT * max((len(label) for _, label in ticks), default=1)
    room = max(steps[1] - steps[0], 1) * 0.03
    x = _Axis(steps[0] - room, steps[1] + room, left, width - 8)
    y = _Axis(low, high, bottom, top, log=panel.log_scale)
    x_ticks = _linear_ticks(steps[0], max(steps[1], steps[0] + 1), 5, integers=True)
    return Plot(
        label=f"{panel.title} by step",
        width=width,
        height=height,
        left=left,
        right=width - 8,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x.place(value), label) for value, label in x_ticks],
        y_ticks=[Tick(y.place(value), label) for value, label in ticks],
        series=[
            _series(points, line.colour, x, y, held_out=held_out)
            for line in panel.lines
            for points, held_out in ((line.train, False), (line.held_out, True))
            if points
        ],
        baseline=None if panel.baseline is None else y.place(panel.baseline),
        rules=[Rule(x.place(mark.step), mark.number, mark.colour) for mark in marks],
    )


def histogram(
    labels: Sequence[str], counts: Sequence[int], *, cut_after: int | None, cut_label: str
) -> Plot:
    """Lay out rows by length; a line after bin `cut_after` shows max_length."""
    width, height, top, bottom = 420, 230, 18, 186
    high = max(*counts, 1)
    ticks = list(_linear_ticks(0, high, 4, integers=True))
    left = 14 + _TEXT * max(len(label) for _, label in ticks)
    x = _Axis(-0.6, len(labels) - 0.4, left, width - 8)
    y = _Axis(0, high * 1.05, bottom, top)
    bar_width = 0.92 * (x.place(1) - x.place(0))
    rules = []
    if cut_after is not None:
        edge = cut_after + 0.5
        align = "end" if edge > len(labels) / 2 else "start"
        rules.append(Rule(x.place(edge), cut_label, "mark", align))
    return Plot(
        label=f"rows by tokens, {cut_label}",
        width=width,
        height=height,
        left=left,
        right=width - 8,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x.place(at), label) for at, label in enumerate(labels)],
        y_ticks=[Tick(y.place(value), label) for value, label in ticks],
        slanted=True,
        bars=[
            Bar(
                round(x.place(at) - bar_width / 2, 2),
                y.place(count),
                round(bar_width, 2),
                round(bottom - y.place(count), 2),
                f"{label} tokens: {count:,} rows",
            )
            for at, (label, count) in enumerate(zip(labels, counts, strict=True))
        ],
        rules=rules,
    )


def _series(points: Sequence[Point], colour: str, x: _Axis, y: _Axis, *, held_out: bool) -> Series:
    places = [
        (x.place(step), y.place(value), f"step {step:g}: {value:.4g}")
        if value is not None and _is_drawn(value)
        else None
        for step, value in points
    ]
    runs = [[place for place in run if place] for drawn, run in groupby(places, bool) if drawn]
    path = "".join(
        "M" + "L".join(f"{px:g},{py:g}" for px, py, _ in run) for run in runs if len(run) > 1
    )
    # A single value between gaps is not a line.
    circles = [
        place for run in runs if held_out or len(run) == 1 or len(points) < 3 for place in run
    ]
    radius = (3.0 if len(points) < 40 else 2.0) if held_out else 1.8
    return Series(colour, path, held_out, circles, radius)


def _is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


def _limits(values: Sequence[float | None], panel: PanelData) -> tuple[float, float]:
    """Return the ends of the y axis, with some room around the values."""
    finite = [value for value in values if value is not None]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if panel.log_scale:
        return low / 1.2, high * 1.2
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _linear_ticks(
    low: float, high: float, count: int, *, integers: bool = False
) -> Iterator[tuple[float, str]]:
    """Yield at most `count` + 1 round values between two values, with labels."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if integers:
        step = max(1.0, float(round(step)))
    largest = max(abs(low), abs(high))
    scientific = largest >= 1e6 or largest < 1e-3
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if f"{step:.{decimals}f}" != f"{step:g}" and not scientific:
        decimals += 1  # 2.5, 0.25
    for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        value = at * step
        yield value, _scientific(value) if scientific else f"{value:,.{decimals}f}"


def _log_ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Yield powers of ten, or of their 1, 2 and 5 times if there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 3) if len(powers) > 3 else (1, 2, 5)
    every = max(1, len(powers) // 5)
    for power in powers[::every]:
        for factor in factors:
            value = factor * 10.0**power
            if low <= value <= high:
                yield value, f"{value:g}" if -4 < power < 6 else _scientific(value)


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
