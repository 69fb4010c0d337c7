"""The metric rows of a run so far, by metric, and means over windows of steps."""

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
    """Optimizer steps that the row is the mean of: those since the previous training row."""


class Window(NamedTuple):
    """Successive points of a metric."""

    points: Sequence[Point]

    @property
    def steps(self) -> int:
        return sum(point.steps for point in self.points)

    @property
    def end(self) -> int:
        """The last step."""
        return self.points[-1].step

    @property
    def mean(self) -> float:
        """The mean over steps, whatever the number of steps per row."""
        steps = self.steps
        return sum(point.value * (point.steps / steps) for point in self.points)

    @property
    def high(self) -> float:
        return max(point.value for point in self.points)


class History:
    """Rows in the order of training. Series omit values that are not finite; `latest` has them."""

    def __init__(self) -> None:
        self.train: list[Row] = []
        self.eval: list[Row] = []
        self.latest: Row = {}
        self.step = 0
        self._last_train_step = 0
        self._columns: dict[str, list[Point]] = defaultdict(list)

    def add(self, row: Row) -> None:
        self.step = _step_of(row, self.step)
        self.latest = row
        if is_eval(row):
            self.eval.append(row)
            steps = 1
        else:
            self.train.append(row)
            steps = max(self.step - self._last_train_step, 1)
            self._last_train_step = self.step
        for key, value in row.items():
            if (number := finite(value)) is not None:
                self._columns[key].append(Point(self.step, number, steps))

    def points(self, key: str) -> Sequence[Point]:
        """Return the points of a metric: of evaluations for an `eval_` key, else of training."""
        return self._columns.get(key, ())

    def series(self, key: str) -> list[float]:
        return [point.value for point in self.points(key)]

    def first(self, key: str) -> Point | None:
        """Return the first point; that of training shows the policy before its first update."""
        points = self.points(key)
        return points[0] if points else None

    def last(self, key: str) -> Point | None:
        points = self.points(key)
        return points[-1] if points else None

    def recent(self, key: str, steps: int, after: int = 0) -> Window | None:
        """Return the last rows that cover so many steps, all of them later than step `after`.

        None while there are fewer steps; rows without the metric do not count.
        """
        points: list[Point] = []
        covered = 0
        for point in reversed(self.points(key)):
            if covered >= steps or point.step - point.steps < after:
                break
            points.append(point)
            covered += point.steps
        return Window(points[::-1]) if covered >= steps else None

    def opening(self, key: str, steps: int) -> Window | None:
        """Return the first rows that cover so many steps; None while there are fewer."""
        points: list[Point] = []
        covered = 0
        for point in self.points(key):
            if covered >= steps:
                break
            points.append(point)
            covered += point.steps
        return Window(points) if covered >= steps else None

    def from_opening(self, key: str, opening: int, recent: int) -> tuple[Window, Window] | None:
        """Return the windows of the first and of the last steps; None while they overlap.

        opening, recent: steps that each of them covers at least.
        """
        first = self.opening(key, opening)
        last = self.recent(key, recent, after=first.end) if first is not None else None
        return (first, last) if first is not None and last is not None else None


def finite(value: object) -> float | None:
    """Return a value as a float, or None if it is not a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None


def _step_of(row: Row, previous: int) -> int:
    step = finite(row.get("step"))
    return previous if step is None else max(int(step), 0)
