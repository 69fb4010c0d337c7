"""Axes and paths of plots."""

from __future__ import annotations

import pytest

from prefcli.report.panels import Line, PanelData, trend
from prefcli.report.plots.histograms import histogram
from prefcli.report.plots.lines import Mark, line_plot


def panel_of(*values, held_out=(), log_scale=False, baseline=None):
    train = [(float(step), value) for step, value in enumerate(values)]
    line = Line("loss", "first", train, [(float(step), value) for step, value in held_out])
    return PanelData("Loss", "", [line], baseline, log_scale)


def labels(ticks):
    return [tick.label for tick in ticks]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0), ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ((0.48, 0.71), ["0.5", "0.6", "0.7"]),
        ((0.0, 2e-7), ["0", "5e-8", "1e-7", "1.5e-7", "2e-7"]),
        ((20_000.0, 24_000.0), ["20,000", "21,000", "22,000", "23,000", "24,000"]),
        ((-3.0, -1.0), ["-3.0", "-2.5", "-2.0", "-1.5", "-1.0"]),
        ((1e37, 2e37), ["1e37", "1.25e37", "1.5e37", "1.75e37", "2e37"]),
    ],
)
def test_line_plot_has_round_ticks(values, expected):
    assert labels(line_plot(panel_of(*values), [], (0, 1)).y_ticks) == expected


def test_line_plot_on_a_log_scale_has_powers_of_ten():
    plot = line_plot(panel_of(1.0, 900.0, log_scale=True), [], (0, 1))
    assert labels(plot.y_ticks) == ["1", "10", "100", "1000"]
    heights = [tick.at for tick in plot.y_ticks]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.02)


@pytest.mark.parametrize("value", [0.0, 1.0, -5e-324, 1e308, None])
def test_line_plot_of_one_value_has_an_axis(value):
    plot = line_plot(panel_of(value), [], (0, 0))
    assert len(plot.y_ticks) >= 2
    assert labels(plot.x_ticks) == ["0", "1"]


def test_line_plot_breaks_the_path_at_gaps():
    plot = line_plot(panel_of(1.0, 2.0, None, 3.0, float("nan"), 4.0, 1e308, 5.0), [], (0, 7))
    (series,) = plot.series
    assert series.path.count("M") == 1
    assert len(series.circles) == 3
    assert [strip.text for strip in plot.strips][2:4] == [
        "step 2\nloss: not finite",
        "step 3\nloss: 3",
    ]


def test_line_plot_joins_evaluations_from_the_third_on():
    held_out = [(0, 1.0), (50, 0.7), (100, 0.5)]
    for count, joined in ((2, False), (3, True)):
        plot = line_plot(panel_of(held_out=held_out[:count]), [], (0, 100))
        (series,) = plot.series
        assert (series.style, len(series.circles), bool(series.path)) == ("dashed", count, joined)


def test_line_plot_smooths_long_lines():
    points = [(float(step), float(step % 2)) for step in range(41)]
    points[30] = (30.0, None)
    line = Line("loss", "first", points, [], trend(points))
    plot = line_plot(PanelData("Loss", "", [line], None, False), [], (0, 40))
    assert [series.style for series in plot.series] == ["faint", "solid"]
    assert plot.is_smoothed
    assert trend(points)[20] == (20.0, pytest.approx(0.4))
    assert trend(points)[30] == (30.0, None)
    assert trend(points[:39]) == []


def test_trend_of_a_long_line_has_few_points_over_all_of_it():
    points = [(float(step), float(step)) for step in range(100_000)]
    means = trend(points)
    assert len(means) <= 201
    assert (means[0][0], means[-1][0]) == (0.0, 99_999.0)
    assert means[100] == (50_000.0, pytest.approx(50_000, abs=50))


def test_line_plot_labels_the_last_values_without_overlap():
    lines = [Line(name, "first", [(0.0, 1.0), (9.0, 0.50004)], []) for name in ("chosen", "all")]
    plot = line_plot(PanelData("Rewards", "", lines, None, False), [], (0, 9))
    assert [end.text for end in plot.ends] == ["chosen 0.500", "all 0.500"]
    assert plot.names_lines
    assert abs(plot.ends[0].y - plot.ends[1].y) >= 13
    assert all(plot.top <= end.y <= plot.bottom for end in plot.ends)


@pytest.mark.parametrize(("step", "text"), [(1, "7.00"), (7, "0.250")])
def test_line_plot_labels_the_last_evaluation_unless_it_is_old(step, text):
    plot = line_plot(panel_of(*range(8), held_out=[(step, 0.25)]), [], (0, 7))
    assert [end.text for end in plot.ends] == [text]


def test_line_plot_of_a_long_run_has_few_strips_over_all_of_it():
    plot = line_plot(panel_of(*range(1000)), [], (0, 999))
    assert len(plot.strips) <= 80
    assert sum(strip.width for strip in plot.strips) == pytest.approx(plot.right - plot.left, abs=1)


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ((20, 60), ["1 gradient", "2 gradient"]),
        ((20, 25), ["1", "2 gradient"]),
        ((20, 95), ["1 gradient", "2 gradient"]),
        ((90, 95), ["1", "2"]),
    ],
)
def test_line_plot_names_the_rule_of_a_mark_where_there_is_room(steps, labels):
    marks = [Mark(step, str(at), "gradient", "note") for at, step in enumerate(steps, start=1)]
    plot = line_plot(panel_of(1.0, 2.0), marks, (0, 100))
    assert [rule.label for rule in plot.rules] == labels


def test_line_plot_keeps_everything_inside():
    marks = [Mark(0, "1", "finite", "note"), Mark(7, "2", "finite", "error")]
    plot = line_plot(panel_of(*range(8), baseline=-2.0), marks, (0, 7))
    assert plot.top <= plot.baseline <= plot.bottom
    assert all(plot.left <= rule.at <= plot.right for rule in plot.rules)
    assert all(plot.top <= tick.at <= plot.bottom for tick in plot.y_ticks)


def test_histogram_draws_a_rule_after_the_cut():
    counts = {"chosen": [8, 4, 1], "rejected": [7, 4, 2]}
    plot = histogram(["0-8", "9-16", "17"], counts, cut_after=1, cut_label="max_length 16")
    (rule,) = plot.rules
    first, last = plot.bars[4], plot.bars[2]
    assert (first.label, first.colour) == ("rejected, 9-16 tokens: 4 rows", "rejected")
    assert first.x + first.width < rule.at < last.x
    assert labels(plot.y_ticks) == ["0", "2", "4", "6", "8"]


def test_histogram_without_a_cut_has_no_rule():
    assert histogram(["0-8"], {"row": [0]}, cut_after=None, cut_label="max_length 16").rules == []
