"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

# A full block would touch the curve of the line above.
_BLOCKS = "▁▂▃▄▅▆▇"
_ASCII = "_.-=+*#"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """At most `width` characters; more values than that are averaged, neighbours together."""
    if not values or width < 1:
        return ""
    marks = _ASCII if ascii_only else _BLOCKS
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return marks[len(marks) // 2] * count
    top = len(marks) - 1
    return "".join(marks[round((mean - low) / (high - low) * top)] for mean in means)
