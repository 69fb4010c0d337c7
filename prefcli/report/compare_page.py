"""Several runs side by side as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prefcli.metrics import DISTANCES, METRICS, Metric, Row, is_tie
from prefcli.report.best_run import rank_runs
from prefcli.report.held_out import COMPARED
from prefcli.report.html import render
from prefcli.report.panels import RUN_COLOURS, comparison_panels
from prefcli.report.run_data import Run, as_dict, format_value
from prefcli.report.run_page import is_subsampled, plots, step_range
from prefcli.report.samples import Answer, samples
from prefcli.report.settings import settings_of
from prefcli.report.tables import Cell, Head, Table
from prefcli.report.trade_off import trade_offs
from prefcli.report.verdict import verdict

_FIRST = "rewards/accuracies"
_FEW = 3
"""Runs up to which each has a column, and a box for its outcome."""


class Values(NamedTuple):
    """The values of a metric at the end of each run."""

    key: str
    values: list[str]
    best: set[int]
    """The runs with the best value; empty if the values do not compare."""

    @property
    def title(self) -> str:
        return METRICS[self.key].title


class SharedPrompt(NamedTuple):
    """A prompt that several runs answered."""

    place: str
    prompt: str
    answers: list[tuple[int, Answer]]
    """The last greedy answer of each run, by its index."""
    data: list[Answer]
    """The answers in the data."""


class Summary(NamedTuple):
    """A table above all others, of what was measured outside the runs."""

    title: str
    table: Table
    note: str


def compare_page(
    runs: Sequence[Run],
    *,
    refresh: int | None = None,
    best: str | None = None,
    summary: Summary | None = None,
) -> str:
    """Return the page of several runs as HTML.

    best: the metric that names the best run, by its head in a table. refresh: seconds after which
    a browser reads it again.
    """
    names = short_names(runs)
    panels = list(comparison_panels(runs, names))
    held_out = last_values(runs, held_out=True)
    large, folded = plots(panels, [], step_range(panels))
    same_units = _have_same_units(runs)
    heads = [Head(name, f"run{at % RUN_COLOURS}") for at, name in enumerate(names)]
    main = _table(
        heads,
        # What the runs are chosen by comes first: a narrow screen shows two or three columns.
        sorted((row for row in held_out if row.key in COMPARED), key=lambda row: row.key != _FIRST),
    )
    settings = Table(
        heads,
        [
            (Head(key, is_text=True), [Cell(value, is_text=True) for value in values])
            for key, values in differing(runs)
        ],
    )
    folded_metrics = {
        "held-out rows": _table(heads, [row for row in held_out if row.key not in COMPARED]),
        "training": _table(heads, last_values(runs, held_out=False)),
    }
    many = len(runs) > _FEW
    if many:  # a row per run
        outcomes = Head("outcome", is_text=True), list(map(_outcome, runs))
        main = Table(heads, [outcomes, *main.rows]).transposed()
        settings = settings.transposed()
    return render(
        "compare.html",
        {
            "refresh": refresh,
            "summary": summary,
            "runs": [
                {
                    "name": name,
                    "method": run.method,
                    "verdict": verdict(run),
                    "colour": f"run{at % RUN_COLOURS}",
                }
                for at, (name, run) in enumerate(zip(names, runs, strict=True))
            ],
            "same_rows": _have_same_rows(runs),
            "same_units": same_units,
            "outcomes_in_table": many,
            "best": None if best is None else list(rank_runs(runs, best).lines(names)),
            "metrics": main,
            "settings": settings,
            "more_metrics": {group: table for group, table in folded_metrics.items() if table.rows},
            "trade_offs": trade_offs(runs, names, same_units=same_units),
            "plots": (large, folded),
            "is_smoothed": any(plot.is_smoothed for _, plot in (*large, *folded)),
            "subsampled": any(map(is_subsampled, runs)),
            "prompts": list(shared_prompts(runs)),
            "has_samples": sum(bool(run.samples) for run in runs) > 1,
        },
    )


def _table(heads: Sequence[Head], metrics: Sequence[Values]) -> Table:
    """Return a row for each metric, and a column for each run."""
    rows = [
        (Head(row.title), [Cell(text, at in row.best) for at, text in enumerate(row.values)])
        for row in metrics
    ]
    return Table(heads, rows)


def _outcome(run: Run) -> Cell:
    outcome = verdict(run)
    return Cell(
        outcome.state,
        level=outcome.level,
        details=[f"{run.method}: {outcome.title}", *outcome.details],
        is_text=True,
    )


def short_names(runs: Sequence[Run]) -> list[str]:
    """Return each folder's name, with as many parent folders as make the names distinct."""
    parts = [run.path.absolute().parts for run in runs]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(set(parts)):
        depth += 1
    return [str(Path(*path[-depth:])) for path in parts]


def last_values(runs: Sequence[Run], *, held_out: bool) -> list[Values]:
    """Return the last values in each run of the metrics with a plot."""
    if held_out:
        last: list[Row] = [run.model_eval if run.evals else {} for run in runs]
    else:
        last = [run.rows[-1] if run.rows else {} for run in runs]
    # The accuracy of pairs that are all tied is not a value.
    last = [{k: v for k, v in row.items() if not is_tie(row, k)} for row in last]
    compares, same_units = held_out and _have_same_rows(runs), _have_same_units(runs)
    result = []
    for key, metric in METRICS.items():
        is_superseded = any(metric.superseded_by in row for row in last)
        is_shown = metric.panel is not None and key != "learning_rate" and not is_superseded
        if is_shown and any(key in row for row in last):
            values = [format_value(key, row[key]) if key in row else "-" for row in last]
            has_best = compares and (same_units or not metric.is_in_units_of_method)
            best = _best(metric, [row.get(key) for row in last]) if has_best else set()
            result.append(Values(key, values, best))
    return result


def _best(metric: Metric, values: Sequence[float | None]) -> set[int]:
    """Return the indices of the best values, if the others are worse by more than noise."""
    finite = [value for value in values if value is not None]
    if metric.better is None or metric.key in DISTANCES or len(finite) < 2:
        return set()
    best, worst = max(finite), min(finite)
    if metric.better == "lower":
        best, worst = worst, best
    if metric.is_close(worst, best):
        return set()
    return {at for at, value in enumerate(values) if value == best}


def _have_same_rows(runs: Sequence[Run]) -> bool:
    """Return whether all evaluations are known to be on the same rows."""
    splits = [as_dict(as_dict(run.record.get("data")).get("eval")) for run in runs if run.evals]
    fingerprints = {split.get("fingerprint") for split in splits}
    return len(fingerprints) == 1 and None not in fingerprints


def _have_same_units(runs: Sequence[Run]) -> bool:
    """Return whether losses and rewards of all runs have the same units."""
    return len({(run.method, repr(run.recipe_value(run.method))) for run in runs}) == 1


def shared_prompts(runs: Sequence[Run]) -> Iterator[SharedPrompt]:
    """Yield the prompts that more than one run answered, in the order of the first such run."""
    by_run = [{sample.prompt: sample for sample in samples(run)} for run in runs]
    for prompt in dict.fromkeys(prompt for by_prompt in by_run for prompt in by_prompt):
        given = [(at, by_run[at][prompt]) for at in range(len(runs)) if prompt in by_run[at]]
        if len(given) > 1:
            first = given[0][1]
            answers = [(at, a) for at, sample in given for a in sample.answers if a.is_final]
            yield SharedPrompt(
                first.place, prompt, answers, [a for a in first.answers if a.is_data]
            )


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield (dotted path, its value in each run) for settings and versions that differ.

    A setting that none of the recipes has is a default, and is not among them.
    """
    recipes = [dict(settings_of(run.recipe)) for run in runs]
    written = [dict(settings_of(run.record.get("settings"))) for run in runs]
    methods = {run.method for run in runs}
    settings: list[dict[str, str]] = []
    for run, recipe in zip(runs, recipes, strict=True):
        others = tuple(f"{method}." for method in methods - {run.method})
        own = {key: value for key, value in recipe.items() if not key.startswith(others)}
        facts = {name: run.record.get(name) for name in ("prefcli", "versions", "device")}
        settings.append({"method": run.method, **own, **dict(settings_of(facts))})
    # Runs of earlier versions do not say what was written.
    shown = {key for own, all_keys in zip(written, recipes, strict=True) for key in own or all_keys}
    for key in dict.fromkeys(key for by_path in settings for key in by_path):
        values = [by_path.get(key, "-") for by_path in settings]
        is_default = any(key in recipe for recipe in recipes) and key not in shown
        if len(set(values)) > 1 and key != "output_dir" and not is_default:
            yield key, values
