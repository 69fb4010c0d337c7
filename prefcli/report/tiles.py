"""Tiles: a metric now, at the start, and whether it got better."""

from __future__ import annotations

from typing import NamedTuple

from prefcli.metrics import DISTANCES, METRICS, Row
from prefcli.report.held_out import Change
from prefcli.report.plots.lines import spark_path
from prefcli.report.run_data import Run, format_value
from prefcli.report.verdict import Verdict

_FIRST = ("rewards/accuracies", "loss", "rewards/margins", "perplexity")
_OF_TRAINING = (
    "rewards/accuracies",
    "loss",
    "rewards/margins",
    "mean_token_accuracy",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "grad_norm",
)
_WIDTH, _HEIGHT = 96, 24


class Tile(NamedTuple):
    """One metric of a run."""

    title: str
    explanation: str
    value: str
    start: str
    """The first value as text, or why there is none."""
    change: str
    """The difference with an arrow; empty without a first value."""
    outcome: str
    """better, worse, same, or empty where no direction is better."""
    spark: str
    """The path of a small line; empty for few values."""


def tiles(run: Run, outcome: Verdict) -> tuple[str, list[Tile]]:
    """Return the kind of rows, held-out or else training rows, and the tiles of their metrics."""
    if outcome.eval_steps[0] < outcome.eval_steps[1] or not run.rows:
        place = {key: at for at, key in enumerate(_FIRST)}
        changes = sorted(outcome.changes, key=lambda change: place.get(change.key, len(place)))
        return "held-out rows", [_of_change(run, c, outcome.eval_steps[0]) for c in changes]
    return "training rows", [
        tile for key in _OF_TRAINING if (tile := _of_training(run.rows, key)) is not None
    ]


def _of_change(run: Run, change: Change, step: int) -> Tile:
    spark = _spark(run.evals, change.key) or _spark(run.rows, change.key)
    if change.compared:
        start = f"{format_value(change.key, change.first)} at step {step}"
    elif run.ties_at_start and change.key.startswith("rewards/") and len(run.evals) > 1:
        is_accuracy = "accuracies" in change.key
        start = "all pairs tied at the start" if is_accuracy else "0 at the start"
    else:
        start = ""
    first = change.first if change.compared else None
    return _tile(change.key, first, change.last, start, spark, unchanged=change.unchanged)


def _of_training(rows: list[Row], key: str) -> Tile | None:
    measured = [row for row in rows if key in row]
    if not measured:
        return None
    first, last = measured[0], measured[-1]
    start = (
        f"{format_value(key, first[key])} at step {first['step']:g}" if first is not last else ""
    )
    before = first[key] if first is not last else None
    return _tile(key, before, last[key], start, _spark(rows, key))


def _tile(
    key: str,
    first: float | None,
    last: float | None,
    start: str,
    spark: str,
    *,
    unchanged: bool | None = None,
) -> Tile:
    metric = METRICS[key]
    change, outcome = "", ""
    if first is not None and last is not None:
        if unchanged is None:
            unchanged = metric.is_close(first, last)
        rises = last > first
        change = f"{'▲' if rises else '▼'} {metric.format_change(first, last)}"
        if unchanged:
            change, outcome = "=", "same"
        elif metric.better is not None and key not in DISTANCES:
            outcome = "better" if rises == (metric.better == "higher") else "worse"
    return Tile(
        metric.title, metric.explanation, format_value(key, last), start, change, outcome, spark
    )


def _spark(rows: list[Row], key: str) -> str:
    return spark_path([row[key] for row in rows if key in row], _WIDTH, _HEIGHT)
