"""The metric rows of a run so far, by metric, and what can be said of a stretch of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from prefcli.metrics import Row, is_eval


class Point(NamedTuple):
    """A metric in one row."""

    step: int
    value: float
    steps: int
    """Optimizer steps that the row is the mean of: those since the train row before it."""


class Window(NamedTuple):
    """Successive points of a metric."""

    points: Sequence[Point]

    @property
    def steps(self) -> int:
        return sum(point.steps for point in self.points)

    @property
    def end(self) -> int:
        """Its last step."""
        return self.points[-1].step

    @property
    def mean(self) -> float:
        """Over steps, however many a row stands for."""
        steps = self.steps
        return sum(point.value * (point.steps / steps) for point in self.points)

    @property
    def low(self) -> float:
        return min(point.value for point in self.points)

    @property
    def high(self) -> float:
        return max(point.value for point in self.points)


class History:
    """Fed in order. A value that is not finite is in no series; `latest` still has its row."""

    def __init__(self) -> None:
        self.train: list[Row] = []
        self.eval: list[Row] = []
        self.latest: Row = {}
        self.step = 0
        self._trained = 0
        self._columns: dict[str, list[Point]] = defaultdict(list)

    def add(self, row: Row) -> None:
        self.step = _step_of(row, self.step)
        self.latest = row
        if is_eval(row):
            self.eval.append(row)
            steps = 1
        else:
            self.train.append(row)
            steps = max(self.step - self._trained, 1)
            self._trained = self.step
        for key, value in row.items():
            if (number := finite(value)) is not None:
                self._columns[key].append(Point(self.step, number, steps))

    def points(self, key: str) -> Sequence[Point]:
        """Of evaluations for an `eval_` key, else of training."""
        return self._columns.get(key, ())

    def series(self, key: str, last: int | None = None) -> list[float]:
        points = self.points(key)
        return [point.value for point in (points[-last:] if last else points)]

    def first(self, key: str) -> Point | None:
        """At the start: the first train row is of the policy before its first update."""
        points = self.points(key)
        return points[0] if points else None

    def last(self, key: str) -> Point | None:
        points = self.points(key)
        return points[-1] if points else None

    def recent(self, key: str, steps: int, after: int = 0) -> Window | None:
        """The last rows that make up so many steps, all of them later than step `after`.

        None while there are fewer; rows without the metric do not count.
        """
        taken: list[Point] = []
        covered = 0
        for point in reversed(self.points(key)):
            if covered >= steps or point.step - point.steps < after:
                break
            taken.append(point)
            covered += point.steps
        return Window(taken[::-1]) if covered >= steps else None

    def opening(self, key: str, steps: int) -> Window | None:
        """The first rows, as few as make up so many steps; None while there are fewer."""
        taken: list[Point] = []
        covered = 0
        for point in self.points(key):
            if covered >= steps:
                break
            taken.append(point)
            covered += point.steps
        return Window(taken) if covered >= steps else None


def finite(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None


def _step_of(row: Row, before: int) -> int:
    step = finite(row.get("step"))
    return before if step is None else max(int(step), 0)
