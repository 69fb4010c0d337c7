"""Histograms: rows by length, and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from prefcli.report.plots.frame import TEXT, WIDTH, Axis, LabelledValues, linear_ticks, make_frame
from prefcli.report.plots.plot import Bar, Plot, Rule

COLOURS_OF_VALUES = ("first", "rejected")
"""Colours of the names in a histogram of values."""
_BOTTOM = 190


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
        every = max(int(-(-len(labels) * TEXT * (len(ends[-1]) + 2) // width)), 1)
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
        lambda width: linear_ticks(edges[0], edges[-1], 6),
        text=lambda name, at, count: f"{name}, {bins[at][0]:.3g} to {bins[at][1]:.3g}: {count:,}",
        colours=COLOURS_OF_VALUES,
    )
    return plot


def _bar_plot(
    label: str,
    counts: Mapping[str, Sequence[int]],
    bins: Sequence[tuple[float, float]],
    ends: tuple[float, float],
    x_ticks: Callable[[float], LabelledValues],
    *,
    text: Callable[[str, int, int], str],
    colours: Sequence[str],
) -> tuple[Plot, Axis]:
    """Lay out bars, those of each name next to the others of their bin; also return the x axis.

    bins: start and end of each. ends: of the axis. x_ticks: for the width of the axis. text: of a
    bar, by name, bin and count. colours: of the names.
    """
    high = max(max(*rows, 1) for rows in counts.values())
    plot, x, y = make_frame(
        label,
        ends,
        (0, high * 1.05),
        x_ticks,
        linear_ticks(0, high, 4, integers=True),
        right=WIDTH - 8,
        bottom=_BOTTOM,
    )
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
                    round(_BOTTOM - y.place(count), 2),
                    text(name, at, count),
                    colour,
                )
            )
    return replace(plot, bars=bars), x
