"""An evaluation as tables for a terminal, and as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from prefcli.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, Estimate
from prefcli.evaluation.evaluate import (
    SUM_ACCURACY,
    TOKEN_ACCURACY,
    Evaluation,
    GroupMetrics,
    Metrics,
)
from prefcli.methods import RowKind
from prefcli.metrics import metric
from prefcli.text import aligned, counted

WITHIN_NOISE = "the difference is within noise"

_SHARES = ("rewards/accuracies", SUM_ACCURACY, TOKEN_ACCURACY)
_TITLES = {
    SUM_ACCURACY: "accuracy of sums",
    TOKEN_ACCURACY: "accuracy per token",
}
"""Titles of metrics that are measured only here."""
_TITLES_OF_KIND: Mapping[RowKind, Mapping[str, str]] = {
    "pair": {},
    "labelled": {
        "rewards/chosen": "desirable reward",
        "rewards/rejected": "undesirable reward",
        "logps/chosen_per_token": "desirable logp per token",
        "logps/rejected_per_token": "undesirable logp per token",
    },
    "demonstration": {
        "rewards/chosen": "reward",
        "logps/chosen_per_token": "logp per token",
    },
}
_HEADS = {
    "rewards/accuracies": "accuracy",
    TOKEN_ACCURACY: "accuracy per token",
}
"""The metrics that models are compared by: their heads in a table of groups."""
_WITH_REFERENCE = (
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "reference_kl",
)
_SIDE_BY_SIDE = 2
"""Models in one table of 80 columns."""
_LONGEST_GROUP = 20
_POINTS = " points"


def report_lines(evaluation: Evaluation) -> list[str]:
    """Return the whole report for a terminal of 80 columns."""
    lines = [*head_lines(evaluation), ""]
    several = len(evaluation.models) > 1
    for start in range(0, len(evaluation.models), _SIDE_BY_SIDE):
        lines += _metric_table(evaluation, start, start + _SIDE_BY_SIDE)
        lines.append("")
    for at, metrics in enumerate(evaluation.total.differences, start=1):
        lines += [*_difference_lines(evaluation, at, metrics), ""]
    for name, groups in evaluation.groups.items():
        table = _compared_groups(groups) if several else _single_groups(groups)
        lines += [f"by {name}", *table, ""]
    return lines[:-1]


def as_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as plain data for JSON."""
    rows = evaluation.rows
    return {
        "method": evaluation.method.name,
        "beta": evaluation.beta,
        "reference": evaluation.reference,
        "models": evaluation.models,
        "data": {
            "kind": rows.kind,
            "files": list(dict.fromkeys(rows.split.rows["_file"][:])),
            "fingerprint": rows.split.fingerprint,
            "dropped": {reason: tally.count for reason, tally in rows.split.dropped.items()},
            "unscored": evaluation.unscored,
        },
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "over": "prompts"},
        "kl_rows": evaluation.kl_rows,
        "total": _group_document(evaluation, evaluation.total),
        "groups": {
            name: {label: _group_document(evaluation, part) for label, part in groups.items()}
            for name, groups in evaluation.groups.items()
        },
    }


def head_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield what was compared, and how."""
    total = evaluation.total
    rows = (
        f"{counted(total.rows, _NOUNS[evaluation.rows.kind])} of {counted(total.prompts, 'prompt')}"
    )
    yield f"eval: {rows}; in brackets 95 % intervals over prompts"
    if evaluation.unscored:
        yield f"eval: {counted(evaluation.unscored, 'row')} without scored tokens not counted"
    if evaluation.reference is not None:
        scale = f"{evaluation.beta:g} x " if evaluation.method.needs_reference else ""
        yield f"eval: reward = {scale}log(policy / reference); reference {evaluation.reference}"
    for name, is_reward in zip(evaluation.models, evaluation.reward_models, strict=True):
        if is_reward:
            yield f"eval: {name} is a reward model; its rewards have units of their own"
    if evaluation.kl_rows:
        yield f"eval: KL in nats per token, over {counted(evaluation.kl_rows, 'response')}"
    if len(evaluation.models) > 1:
        yield from (f"eval: {letter(i)} is {name}" for i, name in enumerate(evaluation.models))


_NOUNS = {"pair": "pair", "labelled": "labelled row", "demonstration": "demonstration"}


def letter(at: int) -> str:
    """Return the name of a model in tables."""
    return ascii_uppercase[at] if at < len(ascii_uppercase) else str(at + 1)


def _metric_table(evaluation: Evaluation, start: int, stop: int) -> list[str]:
    models = evaluation.total.models[start:stop]
    heads = [letter(start + at) if len(evaluation.models) > 1 else "" for at in range(len(models))]
    cells = [["", *heads]] if any(heads) else []
    for heading, names in metric_sections(models):
        cells.append([heading, *([""] * len(models))])
        for name in names:
            values = [format_estimate(name, some[name]) if name in some else "-" for some in models]
            cells.append([f"  {metric_title(evaluation, name)}", *values])
    return aligned(cells)


def metric_sections(models: Sequence[Metrics]) -> Iterator[tuple[str, list[str]]]:
    """Yield the metrics with the reference, and those without it, each with a heading."""
    names = list(dict.fromkeys(name for some in models for name in some))
    with_reference = [name for name in names if name in _WITH_REFERENCE]
    others = [name for name in names if name not in _WITH_REFERENCE]
    if with_reference:
        yield "with the reference" if others else "rewards", with_reference
    if others:
        yield "without the reference", others


def metric_title(evaluation: Evaluation, name: str) -> str:
    """Return the title of a metric for the kind of rows."""
    titles = {**_TITLES, **_TITLES_OF_KIND[evaluation.rows.kind]}
    return titles.get(name) or metric(name).title


def _difference_lines(evaluation: Evaluation, at: int, metrics: Metrics) -> list[str]:
    cells = [
        [
            f"  {metric_title(evaluation, name)}",
            format_estimate(name, estimate, signed=True),
            "within noise" if estimate.contains_zero else "",
        ]
        for name, estimate in metrics.items()
    ]
    verdict = difference_verdict(evaluation, at, metrics)
    return [f"{letter(at)} minus A, on the same rows", *aligned(cells), f"  {verdict}"]


def difference_verdict(evaluation: Evaluation, at: int, metrics: Metrics) -> str:
    """Say whether a model differs from the first one beyond noise. metrics: the differences."""
    main = main_metric([metrics])
    title, name = metric_title(evaluation, main), letter(at)
    difference = metrics[main].value
    if metrics[main].contains_zero or difference is None:
        return f"{title}: {WITHIN_NOISE}"
    higher, lower = (name, "A") if difference > 0 else ("A", name)
    return f"{title}: that of {higher} is higher than that of {lower}, beyond noise"


def main_metric(measured: Sequence[Metrics]) -> str:
    """Return the metric by which models are compared: the first that all of them have."""
    names = (*_HEADS, "perplexity")
    return next(name for name in names if all(name in some for some in measured))


def _single_groups(groups: Mapping[str, GroupMetrics]) -> list[str]:
    """Return a table of the accuracy and the margin, or of the metrics that are measured."""
    measured = next(iter(groups.values())).models[0]
    heads = {**_HEADS, "rewards/margins": "margin", "perplexity": "perplexity"}
    order = ("rewards/accuracies", "rewards/margins", TOKEN_ACCURACY, "perplexity")
    shown = [name for name in order if name in measured][:2]
    cells = [["", "rows", *(heads[name] for name in shown)]]
    cells += [
        [
            _short(label),
            str(part.rows),
            *(format_estimate(name, part.models[0][name]) for name in shown),
        ]
        for label, part in groups.items()
    ]
    return _indented(aligned(cells, right=(1,)))


def _compared_groups(groups: Mapping[str, GroupMetrics]) -> list[str]:
    """Return a table per model of its accuracy, as the difference from that of A."""
    models = next(iter(groups.values())).models
    name = main_metric(models)
    lines = []
    for at in range(1, len(models)):
        unit = " (points)" if name in _SHARES else ""
        head = _HEADS.get(name, name)
        cells = [["", "rows", f"{head} of A", f"{letter(at)} minus A{unit}", ""]]
        for label, part in groups.items():
            difference = part.differences[at - 1][name]
            cells.append(
                [
                    _short(label),
                    str(part.rows),
                    format_estimate(name, part.models[0][name]),
                    format_estimate(name, difference, signed=True).removesuffix(_POINTS),
                    "noise" if difference.contains_zero else "",
                ]
            )
        lines += _indented(aligned(cells, right=(1,)))
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_GROUP else f"...{label[3 - _LONGEST_GROUP :]}"


def format_estimate(name: str, estimate: Estimate, *, signed: bool = False) -> str:
    """Return a value with its interval. signed: it is a difference."""
    unit = _POINTS if signed and name in _SHARES else ""
    value = _number(name, estimate.value, signed=signed)
    if estimate.low is None or estimate.high is None:
        return f"{value}{unit}"
    low, high = (_number(name, end, signed=signed) for end in (estimate.low, estimate.high))
    return f"{value} [{low}, {high}]{unit}"


def _number(name: str, value: float | None, *, signed: bool) -> str:
    if value is None or math.isnan(value):
        return "-"
    is_share, is_reward = name in _SHARES, name.startswith("rewards/")
    if is_share and not signed:
        return f"{value:.1%}"
    value = 100 * value if is_share else value
    digits = ".3f" if is_reward else metric(name).digits
    if abs(value) >= 10:
        digits = ".2f" if abs(value) < 100 else ".1f"
    sign = "+" if signed or is_reward else ""
    text = f"{value:{sign}{'.1f' if is_share else digits}}"
    return text.replace("-", sign) if float(text) == 0 else text


def _group_document(evaluation: Evaluation, part: GroupMetrics) -> dict[str, Any]:
    return {
        "rows": part.rows,
        "prompts": part.prompts,
        "models": {
            name: {key: _estimate(estimate) for key, estimate in metrics.items()}
            for name, metrics in zip(evaluation.models, part.models, strict=True)
        },
        "differences": {
            name: {
                key: _estimate(estimate) | {"within_noise": estimate.contains_zero}
                for key, estimate in metrics.items()
            }
            for name, metrics in zip(evaluation.models[1:], part.differences, strict=True)
        },
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    # JSON has neither infinity nor NaN.
    return {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
