"""The data of a page's plots: panels of metrics, subsampled to what a plot can show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from prefcli.metrics import METRICS, Metric, Panel, Row, is_tie
from prefcli.report.run_data import Run

Point = tuple[float, float | None]
"""Step and value; None is a value that was not finite."""

MAX_POINTS = 1000
"""Points of a line; longer lines are subsampled."""
_LEAST_SMOOTHED = 40
"""Training rows from which a line has a trend."""
_TREND_POINTS = 200
_LARGEST = 1e38
"""Values beyond this, about the largest float32, are gaps: an axis could not show the others."""

RUN_COLOURS = 8
_COLOURS = ("first", "second", "third")
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Line:
    """One metric over the steps."""

    label: str
    colour: str
    """A colour of the style sheet, without its dashes."""
    train: list[Point]
    held_out: list[Point]
    trend: list[Point] = field(default_factory=list)
    """Means of the training rows; empty if they are few."""

    @property
    def points(self) -> list[Point]:
        return [*self.train, *self.held_out]


@dataclass(frozen=True)
class PanelData:
    """A panel with the lines of a run or of several."""

    title: str
    caption: str
    lines: list[Line]
    baseline: float | None
    log_scale: bool
    is_primary: bool = False

    @property
    def has_held_out(self) -> bool:
        return any(line.held_out for line in self.lines)


def run_panels(run: Run) -> Iterator[PanelData]:
    """Yield the panels of one run, without those that were not measured."""
    for spec, metrics in _panels():
        lines = [
            Line(
                metric.line or metric.title,
                metric.line if metric.line in _SIDES else _COLOURS[at],
                *_points(run, metric.key),
            )
            for at, metric in enumerate(metrics)
            if _is_shown(run, metric)
        ]
        if lines:
            caption = spec.caption or metrics[0].explanation
            yield _panel(spec, spec.title, caption, lines)


def comparison_panels(runs: Sequence[Run], names: Sequence[str]) -> Iterator[PanelData]:
    """Yield one panel per metric with one line per run."""
    for spec, metrics in _panels():
        for metric in metrics:
            lines = [
                Line(name, f"run{at % RUN_COLOURS}", *_points(run, metric.key))
                for at, (run, name) in enumerate(zip(runs, names, strict=True))
                if _is_shown(run, metric)
            ]
            if lines:
                is_main = len(metrics) == 1 or metric.line in ("all", "loss")
                title = spec.title if is_main else f"{spec.title}: {metric.line}"
                caption = spec.caption if is_main and spec.caption else metric.explanation
                is_primary = len(lines) > 1 and (is_main or metric.line == "chosen")
                yield _panel(spec, title, caption, lines, may_be_primary=is_primary)


def _panels() -> Iterator[tuple[Panel, list[Metric]]]:
    """Yield each panel with its metrics, in the order of the table."""
    specs = dict.fromkeys(m.panel for m in METRICS.values() if m.panel is not None)
    for spec in specs:
        yield spec, [metric for metric in METRICS.values() if metric.panel == spec]


def _panel(
    spec: Panel, title: str, caption: str, lines: list[Line], *, may_be_primary: bool = True
) -> PanelData:
    values = sorted(value for line in lines for _, value in line.points if value is not None)
    log_scale = spec.log_scale and spans_decades(values)
    baseline = None if log_scale else spec.baseline
    return PanelData(title, caption, lines, baseline, log_scale, spec.is_primary and may_be_primary)


def _is_shown(run: Run, metric: Metric) -> bool:
    better = metric.superseded_by
    return _is_measured(run, metric.key) and not (better and _is_measured(run, better))


def _is_measured(run: Run, key: str) -> bool:
    return any(row.get(key) is not None for row in (*run.rows, *run.evals))


def _points(run: Run, key: str) -> tuple[list[Point], list[Point], list[Point]]:
    train = _series(run.rows, key)
    return subsample(train), subsample(_series(run.evals, key)), trend(train)


def _series(rows: Sequence[Row], key: str) -> list[Point]:
    return [
        (float(row["step"] or 0), row[key]) for row in rows if key in row and not is_tie(row, key)
    ]


def trend(points: Sequence[Point]) -> list[Point]:
    """Return means over a tenth of the points around some of them; gaps stay gaps."""
    count = len(points)
    if count < _LEAST_SMOOTHED:
        return []
    half = count // 20
    means: list[Point] = []
    for at in sorted({*range(0, count, -(-count // _TREND_POINTS)), count - 1}):
        step, value = points[at]
        window = points[max(at - half, 0) : at + half + 1]
        # Some of a large window are enough.
        drawn = [y for _, y in window[:: 1 + len(window) // _TREND_POINTS] if is_drawn(y)]
        means.append((step, sum(drawn) / len(drawn) if drawn and is_drawn(value) else None))
    return means


def is_drawn(value: float | None) -> TypeGuard[float]:
    """Return whether a plot shows a value; the others are gaps."""
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


def subsample(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return at most `limit` points: the lowest and highest of each window, and gaps."""
    if len(points) <= limit:
        return points
    windows = limit // 2 - 1
    indices = {0, len(points) - 1}
    for at in range(windows):
        window = range(at * len(points) // windows, (at + 1) * len(points) // windows)
        finite = [(value, i) for i in window if (value := points[i][1]) is not None]
        gap = next((i for i in window if points[i][1] is None), None)
        if gap is not None:
            indices.add(gap)
        if finite:
            indices |= {min(finite)[1]} if gap is not None else {min(finite)[1], max(finite)[1]}
    return [points[i] for i in sorted(indices)]


def spans_decades(values: Sequence[float]) -> bool:
    """Return whether a linear axis would show little but the largest of sorted values."""
    return bool(values) and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]
