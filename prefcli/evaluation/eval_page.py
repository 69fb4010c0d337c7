"""An evaluation as a page: models next to each other, with their intervals as bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prefcli.evaluation.bootstrap import Estimate
from prefcli.evaluation.eval_report import (
    difference_verdict,
    format_estimate,
    head_lines,
    letter,
    main_metric,
    metric_sections,
    metric_title,
)
from prefcli.evaluation.evaluate import Evaluation, GroupMetrics
from prefcli.report.html import render
from prefcli.report.panels import RUN_COLOURS
from prefcli.report.tables import Cell, Head, Table, bars
from prefcli.text import counted

_MISSING = Estimate(None, None, None)


def eval_page(evaluation: Evaluation) -> str:
    """Return the page as HTML."""
    colours = [f"run{at % RUN_COLOURS}" for at in range(len(evaluation.models))]
    several = len(evaluation.models) > 1
    heads = [
        Head(letter(at) if several else "", colour if several else "")
        for at, colour in enumerate(colours)
    ]
    return render(
        "eval.html",
        {
            "notes": [
                line.removeprefix("eval: ")
                for line in head_lines(evaluation)
                if not line.startswith(tuple(f"eval: {head.text} is " for head in heads))
            ],
            "models": list(zip(heads, evaluation.models, strict=True)),
            "verdicts": [
                (
                    f"{letter(at)} and A: {difference_verdict(evaluation, at, metrics)}",
                    "note" if metrics[main_metric([metrics])].contains_zero else "good",
                )
                for at, metrics in enumerate(evaluation.total.differences, 1)
            ],
            "metrics": dict(_metric_tables(evaluation, heads)),
            "differences": _differences(evaluation, colours),
            "groups": {
                name: _groups(evaluation, groups, heads)
                for name, groups in evaluation.groups.items()
            },
        },
    )


def _metric_tables(evaluation: Evaluation, heads: Sequence[Head]) -> Iterator[tuple[str, Table]]:
    models = evaluation.total.models
    for heading, names in metric_sections(models):
        rows = [
            (
                Head(metric_title(evaluation, name)),
                _cells(name, [some.get(name, _MISSING) for some in models]),
            )
            for name in names
        ]
        yield heading, Table(heads, rows)


def _differences(evaluation: Evaluation, colours: Sequence[str]) -> Table:
    differences = evaluation.total.differences
    names = list(dict.fromkeys(name for some in differences for name in some))
    heads = [
        Head(f"{letter(at)} minus A", colour) for at, colour in enumerate(colours[1:], start=1)
    ]
    rows = [
        (
            Head(metric_title(evaluation, name)),
            _cells(name, [some.get(name, _MISSING) for some in differences], signed=True),
        )
        for name in names
    ]
    return Table(heads, rows)


def _groups(
    evaluation: Evaluation, groups: Mapping[str, GroupMetrics], heads: Sequence[Head]
) -> tuple[str, Table]:
    """Return the metric that models are compared by, and its table with a row for each group."""
    models = range(len(evaluation.models))
    name = main_metric([group.models[at] for group in groups.values() for at in models])
    estimates = [group.models[at][name] for group in groups.values() for at in models]
    cells = iter(_cells(name, estimates))
    differences = iter(
        _cells(name, [d[name] for group in groups.values() for d in group.differences], signed=True)
    )
    rows = [
        (
            Head(f"{label} ({counted(group.rows, 'row')})"),
            [*(next(cells) for _ in models), *(next(differences) for _ in group.differences)],
        )
        for label, group in groups.items()
    ]
    minus = [Head(f"{letter(at)} minus A") for at in models if at]
    return metric_title(evaluation, name), Table([*heads, *minus], rows)


def _cells(name: str, estimates: Sequence[Estimate], *, signed: bool = False) -> list[Cell]:
    """Return the values with their intervals on one scale. signed: they are differences."""
    intervals = [
        None
        if one.value is None or one.low is None or one.high is None
        else (one.low, one.value, one.high)
        for one in estimates
    ]
    cells = []
    for estimate, bar in zip(estimates, bars(intervals, with_zero=signed), strict=True):
        value, bracket, rest = format_estimate(name, estimate, signed=signed).partition("[")
        is_noise = signed and bar is not None and estimate.contains_zero
        note = f"{bracket}{rest}{', within noise' if is_noise else ''}"
        cells.append(Cell(value.strip(), bar=bar, note=note))
    return cells
