"""All runs in a folder as one table: what ran, how it ended, how good it is."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prefcli.errors import RecipeError
from prefcli.report.run_data import METRICS_FILE, RECORD_FILE, Run, read_run
from prefcli.report.verdict import verdict
from prefcli.text import aligned

METRIC_HEADS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "loss": "eval loss",
    "perplexity": "perplexity",
    "reference_kl": "KL",
}
"""Metrics of an evaluation: the head of their column."""
_NUMBERS = (*METRIC_HEADS.values(), "step")
"""Columns that are aligned at the right."""


def find_runs(folder: Path) -> list[Run]:
    """Read the runs in a folder and in its subfolders, the newest first. Raises RecipeError."""
    if not os.path.isdir(folder):
        raise RecipeError(
            f"{folder}: no such folder", code="RUN100", hint="name the folder that holds the runs"
        )
    files = [file for name in (RECORD_FILE, METRICS_FILE) for file in folder.rglob(name)]
    return sorted(
        (read_run(path) for path in {file.parent for file in files}),
        key=lambda run: str(run.record.get("started", "")),
        reverse=True,
    )


def run_row(run: Run, folder: Path) -> dict[str, Any]:
    """Return one row of the table, with numbers as they are in the run."""
    last = run.model_eval if run.evals else {}
    path = run.path.relative_to(folder) if run.path.is_relative_to(folder) else run.path
    return {
        "run": str(path) if str(path) != "." else run.name,
        "method": run.method,
        "state": verdict(run).state,
        "step": run.last_step,
        **{head: last.get(key) for key, head in METRIC_HEADS.items()},
        "started": str(run.record.get("started", "")),
    }


def waiting_row(name: str) -> dict[str, Any]:
    """Return the row of a run that has not started."""
    empty = dict.fromkeys(("method", "state", "step", *METRIC_HEADS.values(), "started"))
    return {"run": name, **empty, "state": "waiting"}


def table(rows: list[dict[str, Any]], omit: Collection[str] = ()) -> list[str]:
    """Return the lines of a table: a head, then a line per row. omit: columns to omit."""
    heads = [head for head in rows[0] if head not in omit]
    cells = [heads, *([_cell(head, row[head]) for head in heads] for row in rows)]
    return aligned(cells, [at for at, head in enumerate(heads) if head in _NUMBERS])


def _cell(head: str, value: Any) -> str:
    if value is None:
        return "-"
    if head == "started":
        return str(value)[:16].replace("T", " ")
    if head == "accuracy":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
