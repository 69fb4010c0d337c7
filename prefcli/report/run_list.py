"""All runs in a folder as one table: what ran, how it ended, how good it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefcli.errors import RecipeError
from prefcli.report.run_data import METRICS_FILE, RECORD_FILE, Run, read_run
from prefcli.report.verdict import verdict
from prefcli.text import aligned

_METRICS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "loss": "eval loss",
    "perplexity": "perplexity",
}
"""Metrics of an evaluation: the head of their column."""
_NUMBERS = (*_METRICS.values(), "step")
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
        **{head: last.get(key) for key, head in _METRICS.items()},
        "started": str(run.record.get("started", "")),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: a head, then a line per row."""
    heads = list(rows[0])
    cells = [heads, *([_cell(head, row[head]) for head in heads] for row in rows)]
    return aligned(cells, [at for at, head in enumerate(heads) if head in _NUMBERS])


def _cell(head: str, value: Any) -> str:
    if head == "started":
        return str(value)[:16].replace("T", " ")
    if value is None:
        return "-"
    if head == "accuracy":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
