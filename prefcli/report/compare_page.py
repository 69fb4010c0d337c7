"""Several runs side by side as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli.metrics import METRICS, Row
from prefcli.report.html import render
from prefcli.report.panels import RUN_COLOURS, comparison_panels
from prefcli.report.plots import line_plot
from prefcli.report.run_data import Run, format_value
from prefcli.report.run_page import is_subsampled, step_range
from prefcli.report.verdict import verdict


def compare_page(runs: Sequence[Run]) -> str:
    """Return the page of several runs as HTML."""
    names = short_names(runs)
    panels = list(comparison_panels(runs, names))
    steps = step_range(panels)
    return render(
        "compare.html",
        {
            "runs": [
                {
                    "name": name,
                    "method": run.method,
                    "verdict": verdict(run),
                    "colour": f"run{at % RUN_COLOURS}",
                }
                for at, (name, run) in enumerate(zip(names, runs, strict=True))
            ],
            "methods": list(dict.fromkeys(run.method for run in runs)),
            "settings": list(differing(runs)),
            "metrics": [
                (group, METRICS[key].title, values) for group, key, values in last_values(runs)
            ],
            "plots": [(panel, line_plot(panel, [], steps)) for panel in panels],
            "subsampled": any(map(is_subsampled, runs)),
        },
    )


def short_names(runs: Sequence[Run]) -> list[str]:
    """Return each folder's name, with as many parent folders as make the names distinct."""
    parts = [run.path.absolute().parts for run in runs]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(set(parts)):
        depth += 1
    return [str(Path(*path[-depth:])) for path in parts]


def last_values(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (kind of row, metric, its last value in each run) for the metrics with a plot."""
    rows_by_group: dict[str, list[list[Row]]] = {
        "held-out rows": [run.evals for run in runs],
        "training": [run.rows for run in runs],
    }
    for group, rows_by_run in rows_by_group.items():
        last = [rows[-1] if rows else {} for rows in rows_by_run]
        for key, metric in METRICS.items():
            shown = metric.panel is not None and key != "learning_rate"
            if shown and any(key in row for row in last):
                values = [format_value(key, row[key]) if key in row else "-" for row in last]
                yield group, key, values


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield (dotted path, its value in each run) for settings and versions that differ."""
    settings = [dict(_settings(run)) for run in runs]
    for key in dict.fromkeys(key for by_path in settings for key in by_path):
        values = [by_path.get(key, "-") for by_path in settings]
        if len(set(values)) > 1 and key != "output_dir":
            yield key, values


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    yield "method", run.method
    yield from _leaves(run.recipe, "")
    for name in ("prefcli", "versions", "device"):
        yield from _leaves(run.record.get(name), name)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{at}")
    elif value is not None:
        yield path, str(value)
