"""The data audit for people: a self-contained page, and histograms of lengths for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefcli.report.html import render
from prefcli.report.plots.histograms import histogram
from prefcli.report.plots.plot import Plot

_BAR = 8
_COLUMN = _BAR + 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def data_page(
    document: Mapping[str, Any],
    rows: Mapping[str, Any] | None = None,
    examples: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """Return, as HTML, what `prefcli data --json` prints.

    rows: by split, rows with their text (`ExampleRows` in data/example_rows.py).
    examples: rows of data.train by kind: near-duplicates, and those of `document["pairs"]`.
    """
    splits = document["splits"].items()
    plots = {name: _plots(split["lengths"]) for name, split in splits}
    texts = {"rows": rows or {}, "examples": examples or {}}
    return render("data.html", {"pairs": None, **document, **texts, "plots": plots})


def _plots(lengths: Mapping[str, Any]) -> dict[str, Plot]:
    shape = lengths["histogram"]
    ends, labels = shape["ends"], list(bin_labels(shape["ends"]))
    cut_after = ends.index(shape["room"]) if shape["room"] in ends else None
    label = f"max_length {lengths['max_length']}"
    rows = shape["rows"]
    sides = {name: counts for name, counts in rows.items() if name not in ("prompt", "row")}
    groups = {", ".join(sides): sides} if sides else {}
    groups |= {name: {name: rows[name]} for name in ("prompt", "row") if name in rows}
    return {
        title: histogram(labels, counts, cut_after=cut_after, cut_label=label)
        for title, counts in groups.items()
    }


def text_histograms(lengths: Mapping[str, Any], *, ascii_only: bool) -> list[str]:
    """Return one histogram next to the other as lines of text, with a rule at max_length.

    lengths: `quantiles`, `max_length` and `histogram` of a split.
    """
    shape = lengths["histogram"]
    ends, rows, room = shape["ends"], shape["rows"], shape["room"]
    labels = list(bin_labels(ends))
    width = max(map(len, [*labels, "tokens"]))
    lines = ["  ".join(["tokens".rjust(width), *(f"{name:<{_COLUMN}}" for name in rows)])]
    for at, label in enumerate(labels):
        cells = [_cell(counts[at], max(counts), ascii_only=ascii_only) for counts in rows.values()]
        lines.append("  ".join([label.rjust(width), *cells]))
        if ends[at] == room or (ends[at] == ends[-1] < room):
            dash = "-" if ascii_only else "─"
            rule = f"{dash * 2} max_length {lengths['max_length']} {dash * 2}"
            lines.append(f"{'':>{width}}  {rule:{dash}<{len(rows) * (_COLUMN + 2) - 2}}")
    return [line.rstrip() for line in lines]


def bin_labels(ends: Sequence[int]) -> Iterator[str]:
    """Yield the ranges of bins: 0-8, 9-16, ..."""
    start = 0
    for end in ends:
        yield f"{start}-{end}" if start < end else str(end)
        start = end + 1


def _cell(count: int, largest: int, *, ascii_only: bool) -> str:
    if not count:
        return " " * _COLUMN
    if ascii_only:
        bar = "#" * max(1, round(_BAR * count / largest))
    else:
        full, part = divmod(max(1, round(8 * _BAR * count / largest)), 8)
        bar = _EIGHTHS[8] * full + (_EIGHTHS[part] if part else "")
    return f"{bar} {count}".ljust(_COLUMN)
