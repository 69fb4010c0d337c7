"""Line plots and histograms as inline SVG, with the colours and fonts of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from prefcli.report.panels import Line, PanelData, Point, is_drawn

_TEXT = 6.3
"""Mean width of a character in units of the plot, at its font size of 12."""
_BOLD = 7.0
_LINE_HEIGHT = 13.0
_NAME = 14
"""Characters up to which the name of a line or a rule fits next to it."""
_STRIPS = 80
"""Parts of a plot with a text of their own."""
_X_TITLE = "step"
_RECENT = 0.9
"""Share of the steps after which an evaluation shows the end of a line."""
COLOURS_OF_VALUES = ("first", "rejected")
"""Colours of the names in a histogram of values."""
_LEAST_JOINED = 3
"""Evaluations from which a line joins them."""


class Mark(NamedTuple):
    """A vertical line at the step of a health advice."""

    step: float
    number: str
    """Empty if the label of an earlier mark includes it."""
    rule: str
    """Its name is shown where there is room."""
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
    """A line of the plot: an SVG path and circles."""

    colour: str
    path: str
    style: Literal["solid", "faint", "dashed"]
    """faint: the values of a line that is also drawn smoothed. dashed: held-out rows."""
    circles: list[tuple[float, float]]
    radius: float


class EndLabel(NamedTuple):
    """The last value of a line, next to the plot."""

    y: float
    text: str
    colour: str


class Strip(NamedTuple):
    """A vertical part of the plot with a text that a pointer shows."""

    x: float
    width: float
    text: str


class Dot(NamedTuple):
    """A circle of a scatter plot, with its name next to it where there is room."""

    x: float
    y: float
    colour: str
    text: str
    """Shown under a pointer."""
    is_filled: bool
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    align: str = "start"


class Bar(NamedTuple):
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    label: str
    colour: str


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
    x_title: str = ""
    bars: list[Bar] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    baseline: float | None = None
    dots: list[Dot] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    ends: list[EndLabel] = field(default_factory=list)
    names_lines: bool = False
    """Whether the labels at the ends of lines name them, so that no legend is needed."""
    strips: list[Strip] = field(default_factory=list)

    @property
    def is_smoothed(self) -> bool:
        return any(series.style == "faint" for series in self.series)


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


def line_plot(
    panel: PanelData,
    marks: Sequence[Mark],
    steps: tuple[float, float],
    x_title: str = _X_TITLE,
) -> Plot:
    """Lay out a panel: training as lines, evaluations as circles, health advice as marks.

    steps: the first and last step of all plots of the page.
    """
    width, height, top, bottom = 420, 220, 18, 196
    values = [y for line in panel.lines for _, y in line.points if is_drawn(y)]
    values += [] if panel.baseline is None else [panel.baseline]
    low, high = _limits(values, log_scale=panel.log_scale)
    ticks = list(_log_ticks(low, high) if panel.log_scale else _linear_ticks(low, high, 5))
    left = 14 + _TEXT * max((len(label) for _, label in ticks), default=1)
    names_lines = len(panel.lines) > 1 and all(len(x.label) <= _NAME for x in panel.lines)
    labels = _last_values(panel.lines, names_lines=names_lines)
    right = width - 10 - _BOLD * max(len(text) for text in (x_title, *(t for _, t, _ in labels)))
    room = max(steps[1] - steps[0], 1) * 0.03
    x = _Axis(steps[0] - room, steps[1] + room, left, right)
    y = _Axis(low, high, bottom, top, log=panel.log_scale)
    x_ticks = _linear_ticks(steps[0], max(steps[1], steps[0] + 1), 5, integers=True)
    ends = [EndLabel(y.place(value), text, colour) for value, text, colour in labels]
    return Plot(
        label=f"{panel.title} by {x_title}",
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x.place(value), label) for value, label in x_ticks],
        y_ticks=[Tick(y.place(value), label) for value, label in ticks],
        x_title=x_title,
        series=[series for line in panel.lines for series in _series_of(line, x, y)],
        baseline=None if panel.baseline is None else y.place(panel.baseline),
        rules=_rules(marks, x, right),
        ends=_spread(ends, top, bottom),
        names_lines=names_lines and len(ends) == len(panel.lines),
        strips=list(_strips(panel.lines, x, left, right, x_title)),
    )


def scatter_plot(
    panel: PanelData, x_title: str, y_title: str, open_lines: Collection[int] = ()
) -> Plot:
    """Lay out a panel whose lines have one point each, (x, y). open_lines: have open circles."""
    width, height, top, bottom = 420, 220, 18, 196
    points = [(line, *line.held_out[0]) for line in panel.lines]
    xs, ys = ([x for _, x, _ in points], [y for _, _, y in points if y is not None])
    low, high = _limits(ys, log_scale=False)
    left_end, right_end = _limits(xs, log_scale=panel.log_scale)
    y_ticks = list(_linear_ticks(low, high, 5))
    left = 14 + _TEXT * max(len(label) for _, label in y_ticks)
    right = width - 10 - _BOLD * len(x_title)
    x = _Axis(left_end, right_end, left, right, log=panel.log_scale)
    y = _Axis(low, high, bottom, top)
    x_ticks = (
        _log_ticks(left_end, right_end)
        if panel.log_scale
        else _linear_ticks(left_end, right_end, 5)
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
    named = _named([line.label for line in panel.lines], dots, (left, right, top, bottom))
    return Plot(
        label=panel.title,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x.place(value), label) for value, label in x_ticks],
        y_ticks=[Tick(y.place(value), label) for value, label in y_ticks],
        x_title=x_title,
        dots=named,
        names_lines=all(dot.label for dot in named),
    )


def _named(
    names: Sequence[str], dots: Sequence[Dot], frame: tuple[float, float, float, float]
) -> list[Dot]:
    """Write each name next to its circle, if it covers nothing there."""
    left, right, top, bottom = frame
    covered = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot in dots]
    result = []
    for name, dot in zip(names, dots, strict=True):
        width = _BOLD * len(name)
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


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


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


def _rules(marks: Sequence[Mark], x: _Axis, right: float) -> list[Rule]:
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
            width = _TEXT * len(long)
            if at + width < after:
                label, align = long, "start"
            elif after == right and at - width > before + _TEXT * _NAME:
                label, align = long, "end"
        rules.append(Rule(at, label, mark.colour, align))
    return rules


def _strips(
    lines: Sequence[Line], x: _Axis, left: float, right: float, x_title: str
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
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else _scientific(value)


def spark_path(values: Sequence[float | None], width: float, height: float) -> str:
    """Return the path of a small line without axes; empty for fewer than three values."""
    finite = [value for value in values if value is not None and is_drawn(value)]
    if len(finite) < _LEAST_JOINED:
        return ""
    low, high = min(finite), max(finite)
    x = _Axis(0, len(finite) - 1, 1, width - 1)
    y = _Axis(low, high if high > low else low + 1, height - 2, 2)
    return "M" + "L".join(f"{x.place(at):g},{y.place(v):g}" for at, v in enumerate(finite))


def histogram(
    labels: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    *,
    cut_after: int | None,
    cut_label: str,
) -> Plot:
    """Lay out rows by length as bars; a line after bin `cut_after` shows max_length.

    labels: the range of each bin; the axis shows its end. counts: rows per bin, by name.
    """
    bins = range(len(labels))
    ends = [label.rpartition("-")[2] for label in labels]

    def ticks(width: float) -> Iterator[tuple[float, str]]:
        every = max(int(-(-len(labels) * _TEXT * (len(ends[-1]) + 2) // width)), 1)
        return ((at + 0.5, end) for at, end in enumerate(ends) if (bins[-1] - at) % every == 0)

    plot, x = _bar_plot(
        f"{' and '.join(counts)}: rows by tokens, {cut_label}",
        counts,
        [(at - 0.5, at + 0.5) for at in bins],
        (-0.6, len(labels) - 0.4),
        ticks,
        text=lambda name, at, count: f"{name}, {labels[at]} tokens: {count:,} rows",
        colours=[name if name in ("chosen", "rejected") else "bar" for name in counts],
    )
    if cut_after is None:
        return plot
    edge = cut_after + 0.5
    align = "end" if edge > len(labels) / 2 else "start"
    return replace(plot, rules=[Rule(x.place(edge), cut_label, "mark", align)])


def value_histogram(edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> Plot:
    """Lay out values as bars, one colour for each name. edges: of the bins, one more than those."""
    bins = list(pairwise(edges))
    plot, _ = _bar_plot(
        " and ".join(counts),
        counts,
        bins,
        (edges[0], edges[-1]),
        lambda width: _linear_ticks(edges[0], edges[-1], 6),
        text=lambda name, at, count: f"{name}, {bins[at][0]:.3g} to {bins[at][1]:.3g}: {count:,}",
        colours=COLOURS_OF_VALUES,
    )
    return plot


def _bar_plot(
    label: str,
    counts: Mapping[str, Sequence[int]],
    bins: Sequence[tuple[float, float]],
    ends: tuple[float, float],
    x_ticks: Callable[[float], Iterable[tuple[float, str]]],
    *,
    text: Callable[[str, int, int], str],
    colours: Sequence[str],
) -> tuple[Plot, _Axis]:
    """Lay out bars, those of each name next to the others of their bin; also return the x axis.

    bins: start and end of each. ends: of the axis. x_ticks: for the width of the axis. text: of a
    bar, by name, bin and count. colours: of the names.
    """
    width, height, top, bottom = 420, 220, 18, 190
    high = max(max(*rows, 1) for rows in counts.values())
    ticks = list(_linear_ticks(0, high, 4, integers=True))
    left, right = 14 + _TEXT * max(len(name) for _, name in ticks), width - 8
    x, y = _Axis(*ends, left, right), _Axis(0, high * 1.05, bottom, top)
    bars = []
    for place, ((name, rows), colour) in enumerate(zip(counts.items(), colours, strict=False)):
        for at, ((start, end), count) in enumerate(zip(bins, rows, strict=True)):
            room = x.place(end) - x.place(start)
            share = 0.92 * room / len(counts)
            from_left = x.place(start) + 0.04 * room + place * share
            bars.append(
                Bar(
                    round(from_left, 2),
                    y.place(count),
                    round(share, 2),
                    round(bottom - y.place(count), 2),
                    text(name, at, count),
                    colour,
                )
            )
    plot = Plot(
        label=label,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[Tick(x.place(value), name) for value, name in x_ticks(right - left)],
        y_ticks=[Tick(y.place(value), name) for value, name in ticks],
        bars=bars,
    )
    return plot, x


def _series_of(line: Line, x: _Axis, y: _Axis) -> Iterator[Series]:
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
    x: _Axis,
    y: _Axis,
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


def _limits(values: Sequence[float | None], *, log_scale: bool) -> tuple[float, float]:
    """Return the ends of the y axis, with some room around the values."""
    finite = [value for value in values if value is not None]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if log_scale:
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
