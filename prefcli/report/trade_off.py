"""Trade-offs of several runs: gains on held-out rows against what they cost, a circle per run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefcli.metrics import METRICS
from prefcli.report.panels import RUN_COLOURS, Line, PanelData, is_drawn, spans_decades
from prefcli.report.plots.plot import Plot
from prefcli.report.plots.scatter import scatter_plot
from prefcli.report.run_data import Run
from prefcli.report.verdict import verdict

_GAINS = ("rewards/accuracies", "rewards/margins")
_COSTS = {"reference_kl": "KL", "perplexity": "ppl"}
_LEAST_RUNS = 3
_CAPTION = (
    "Each circle is a run at its last evaluation, an open one a run whose model is not usable. "
    "Better runs are at the upper left."
)


def trade_offs(
    runs: Sequence[Run], names: Sequence[str], *, same_units: bool
) -> list[tuple[PanelData, Plot]]:
    """Return a plot for each gain and cost; none for few runs.

    same_units: whether the margins of the runs compare.
    """
    gains = _GAINS if same_units else _GAINS[:1]
    return [
        plot
        for gain in gains
        for cost in _COSTS
        if (plot := _plot(runs, names, gain, cost)) is not None
    ]


def _plot(
    runs: Sequence[Run], names: Sequence[str], gain: str, cost: str
) -> tuple[PanelData, Plot] | None:
    measured = list(_measured(runs, gain, cost))
    if len(measured) < _LEAST_RUNS:
        return None
    lines = [Line(names[at], f"run{at % RUN_COLOURS}", [], [(x, y)]) for at, x, y in measured]
    xs = sorted(x for _, x, _ in measured)
    panel = PanelData(
        f"{METRICS[gain].title} against {METRICS[cost].title}",
        _CAPTION,
        lines,
        None,
        spans_decades(xs),
    )
    unusable = [
        place for place, (at, _, _) in enumerate(measured) if verdict(runs[at]).level == "error"
    ]
    return panel, scatter_plot(panel, _COSTS[cost], METRICS[gain].title, unusable)


def _measured(runs: Sequence[Run], gain: str, cost: str) -> Iterator[tuple[int, float, float]]:
    """Yield (index of a run, cost, gain)."""
    for at, run in enumerate(runs):
        row = run.model_eval if run.evals else {}
        x, y = row.get(cost), row.get(gain)
        if is_drawn(x) and is_drawn(y):
            yield at, x, y
