"""The frame of every plot: axes with their ticks, in units of the view box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prefcli.report.plots.plot import Plot, Tick

TEXT = 6.3
"""Mean width of a character in units of the plot, at its font size of 12."""
BOLD = 7.0
WIDTH, HEIGHT, TOP = 420, 220, 18

LabelledValues = Iterable[tuple[float, str]]
"""Values of an axis with their labels."""


class Axis:
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


class Frame(NamedTuple):
    """A plot without content, and the places of values in it."""

    plot: Plot
    x: Axis
    y: Axis


def make_frame(
    label: str,
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
    x_ticks: Callable[[float], LabelledValues],
    y_ticks: LabelledValues,
    *,
    right: float,
    bottom: float,
    x_title: str = "",
    x_log: bool = False,
    y_log: bool = False,
) -> Frame:
    """Lay out the axes of a plot; the labels of the y axis decide where it begins.

    x_ends, y_ends: of the axes. x_ticks: for the width of the axis. right: the end of the x axis.
    """
    labelled = list(y_ticks)
    left = 14 + TEXT * max((len(text) for _, text in labelled), default=1)
    x, y = Axis(*x_ends, left, right, log=x_log), Axis(*y_ends, bottom, TOP, log=y_log)
    plot = Plot(
        label=label,
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=right,
        top=TOP,
        bottom=bottom,
        x_ticks=[Tick(x.place(value), text) for value, text in x_ticks(right - left)],
        y_ticks=[Tick(y.place(value), text) for value, text in labelled],
        x_title=x_title,
    )
    return Frame(plot, x, y)


def limits(values: Sequence[float | None], *, log_scale: bool) -> tuple[float, float]:
    """Return the ends of the y axis, with some room around the values."""
    finite = [value for value in values if value is not None]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if log_scale:
        return low / 1.2, high * 1.2
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def linear_ticks(
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
        yield value, in_powers_of_ten(value) if scientific else f"{value:,.{decimals}f}"


def log_ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Yield powers of ten, or of their 1, 2 and 5 times if there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 3) if len(powers) > 3 else (1, 2, 5)
    every = max(1, len(powers) // 5)
    for power in powers[::every]:
        for factor in factors:
            value = factor * 10.0**power
            if low <= value <= high:
                yield value, f"{value:g}" if -4 < power < 6 else in_powers_of_ten(value)


def in_powers_of_ten(value: float) -> str:
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
