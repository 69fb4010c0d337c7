"""The rewards of a file's responses as a page: their distribution, and the best of n."""

from __future__ import annotations

from prefcli.evaluation.score_file import ScoreSummary
from prefcli.report.html import render
from prefcli.report.panels import Line, PanelData, Point
from prefcli.report.plots.histograms import COLOURS_OF_VALUES, value_histogram
from prefcli.report.plots.lines import line_plot
from prefcli.report.plots.plot import Plot
from prefcli.report.tables import Cell, Head, Table, bars
from prefcli.text import counted

_SHOWN = (1, 2, 4, 8, 16, 32, 64)
_BEST = "best of n"


def score_page(summary: ScoreSummary) -> str:
    """Return the page as HTML."""
    plots = []
    if (spread := summary.distribution) is not None:
        lines = [
            Line(name, colour, [], [])
            for name, colour in zip(spread.counts, COLOURS_OF_VALUES, strict=False)
        ]
        panel = PanelData("Rewards", "Responses by reward.", lines, None, log_scale=False)
        plots.append((panel, value_histogram(spread.edges, spread.counts)))
    if summary.best_of:
        plots.append(_curve(summary))
    return render(
        "score.html",
        {
            "summary": summary,
            "lines": [line.removeprefix("score: ") for line in summary.lines()],
            "plots": plots,
            "best_of": _table(summary),
        },
    )


def _curve(summary: ScoreSummary) -> tuple[PanelData, Plot]:
    points: list[Point] = [(float(one.n), one.reward) for one in summary.best_of]
    lines = [Line(_BEST, "first", points, [])]
    lines += [
        Line("low", "note", [(float(one.n), one.low) for one in summary.best_of], []),
        Line("high", "note", [(float(one.n), one.high) for one in summary.best_of], []),
    ]
    panel = PanelData(
        "Mean reward of the best of n",
        f"Over all choices of n of the {counted(len(points), 'response')} to a prompt. low and "
        "high: 95 % interval over prompts. A model may exploit a reward: judge the chosen "
        "responses by something else, too.",
        lines,
        None,
        log_scale=False,
    )
    return panel, line_plot(panel, [], (1.0, float(len(points))), "n")


def _table(summary: ScoreSummary) -> Table:
    shown = [one for one in summary.best_of if one.n in _SHOWN or one is summary.best_of[-1]]
    intervals = [
        None if one.low is None or one.high is None else (one.low, one.reward, one.high)
        for one in shown
    ]
    rows = []
    for one, interval, bar in zip(shown, intervals, bars(intervals), strict=True):
        note = "" if interval is None else f"[{interval[0]:+.3f}, {interval[2]:+.3f}]"
        rows.append((Head(f"best of {one.n}"), [Cell(f"{one.reward:+.3f}", bar=bar, note=note)]))
    return Table([Head("mean reward")], rows)
