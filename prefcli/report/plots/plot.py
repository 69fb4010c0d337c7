"""A plot as the template plot.svg draws it, in units of its view box."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


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
    """Everything that the template draws."""

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
