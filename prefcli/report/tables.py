"""A table of a page: runs or models against metrics, either way round, with intervals as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """A 95 % interval on the scale of its neighbours, in percent of the bar's width."""

    low: float
    high: float
    at: float
    """The place of the value."""
    zero: float | None = None
    """The place of 0, for a difference."""


class Cell(NamedTuple):
    """A value as text."""

    text: str
    is_best: bool = False
    bar: Bar | None = None
    level: str = ""
    """A level of the style sheet, which colours the text."""
    note: str = ""
    """Small text below the value."""
    details: Sequence[str] = ()
    """Lines that are folded."""
    is_text: bool = False
    """It is aligned at the left."""


class Head(NamedTuple):
    """A title of a row or a column."""

    text: str
    colour: str = ""
    """The colour of a run, without its dashes."""
    is_text: bool = False


class Table(NamedTuple):
    """Rows with a head each, below the heads of the columns."""

    heads: Sequence[Head]
    rows: Sequence[tuple[Head, Sequence[Cell]]]

    def transposed(self) -> Table:
        """Return the table with rows as columns."""
        rows = [(head, [cells[at] for _, cells in self.rows]) for at, head in enumerate(self.heads)]
        return Table([head for head, _ in self.rows], rows)


def bars(
    intervals: Sequence[tuple[float, float, float] | None], *, with_zero: bool = False
) -> list[Bar | None]:
    """Lay out (low, value, high) of each cell on one scale; a cell without one has no bar."""
    ends = [end for interval in intervals if interval for end in (interval[0], interval[2])]
    if not ends:
        return [None for _ in intervals]
    ends += [0.0] if with_zero else []
    low, high = min(ends), max(ends)
    width = high - low or abs(high) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / width, 1)

    zero = place(0.0) if with_zero else None
    return [
        None if one is None else Bar(place(one[0]), place(one[2]), place(one[1]), zero)
        for one in intervals
    ]
