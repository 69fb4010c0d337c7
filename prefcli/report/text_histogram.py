"""Histograms of lengths in plain characters, for a terminal and for the log of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BAR = 8
_COLUMN = _BAR + 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def pictures(lengths: Mapping[str, Any], *, ascii_only: bool) -> list[str]:
    """One histogram beside the other, over the same lengths; a line where max_length cuts.

    lengths: `quantiles`, `max_length` and `histogram` of a split.
    """
    histogram = lengths["histogram"]
    ends, rows, room = histogram["ends"], histogram["rows"], histogram["room"]
    labels = list(bin_labels(ends))
    width = max(map(len, [*labels, "tokens"]))
    lines = ["  ".join(["tokens".rjust(width), *(f"{name:<{_COLUMN}}" for name in rows)])]
    for at, label in enumerate(labels):
        cells = [_cell(counts[at], max(counts), ascii_only=ascii_only) for counts in rows.values()]
        lines.append("  ".join([label.rjust(width), *cells]))
        if ends[at] == room or (ends[at] == ends[-1] < room):
            dash = "-" if ascii_only else "─"
            mark = f"{dash * 2} max_length {lengths['max_length']} {dash * 2}"
            lines.append(f"{'':>{width}}  {mark:{dash}<{len(rows) * (_COLUMN + 2) - 2}}")
    return [line.rstrip() for line in lines]


def bin_labels(ends: Sequence[int]) -> Iterator[str]:
    """0-8, 9-16, ..."""
    start = 0
    for end in ends:
        yield f"{start}-{end}" if start < end else str(end)
        start = end + 1


def _cell(count: int, most: int, *, ascii_only: bool) -> str:
    if not count:
        return " " * _COLUMN
    if ascii_only:
        bar = "#" * max(1, round(_BAR * count / most))
    else:
        whole, part = divmod(max(1, round(8 * _BAR * count / most)), 8)
        bar = _EIGHTHS[8] * whole + (_EIGHTHS[part] if part else "")
    return f"{bar} {count}".ljust(_COLUMN)
