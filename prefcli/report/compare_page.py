"""Several runs side by side, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli.report.html import drawn, ends_of, page
from prefcli.report.metrics import METRICS, figure
from prefcli.report.panels import RUN_COLOURS, overlaid
from prefcli.report.run_data import Run
from prefcli.report.run_page import is_thinned
from prefcli.report.verdict import verdict


def compare_page(runs: Sequence[Run]) -> str:
    names = short_names(runs)
    shown = list(overlaid(runs, names))
    return page(
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
            "figures": [
                (group, METRICS[key].words, values) for group, key, values in figures(runs)
            ],
            "drawn": drawn(shown, [], ends_of(shown)),
            "thinned": any(map(is_thinned, runs)),
        },
    )


def short_names(runs: Sequence[Run]) -> list[str]:
    """Each folder's own name, with as many of those above it as tell them apart."""
    parts = [run.path.absolute().parts for run in runs]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(set(parts)):
        depth += 1
    return [str(Path(*each[-depth:])) for each in parts]


def figures(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[str]]]:
    """(where it was measured, metric, its last figure in each run)"""
    for group, rows in (
        ("on held-out rows", [run.evals for run in runs]),
        ("while training", [run.rows for run in runs]),
    ):
        last = [each[-1] if each else {} for each in rows]
        for key in METRICS:
            if any(key in row for row in last) and key != "learning_rate":
                yield group, key, [figure(row[key]) if key in row else "-" for row in last]


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """(dotted path, its value in each run) of the settings and versions that are not alike."""
    flat = [dict(_settings(run)) for run in runs]
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, "-") for each in flat]
        if len(set(values)) > 1 and key != "output_dir":
            yield key, values


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    yield "method", run.method
    yield from _leaves(run.recipe, "")
    for name in ("prefcli", "versions", "device"):
        yield from _leaves(run.run.get(name), name)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _leaves(inside, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for at, inside in enumerate(value):
            yield from _leaves(inside, f"{path}.{at}")
    elif value is not None:
        yield path, str(value)
