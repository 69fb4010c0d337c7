"""A run folder as plain data: whatever is there of it, and nothing that is not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prefcli.errors import RecipeError

Row = Mapping[str, Any]

_SIGNS = ("run.json", "metrics.jsonl")
"""A folder that holds one of these is a run's."""


@dataclass(frozen=True)
class Run:
    """A run folder's files. Each may be missing, as of a run that was killed, or an older one."""

    path: Path
    name: str = "run"
    run: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    rows: list[Row] = field(default_factory=list)
    """Of training: `step`, and numbers or None."""
    evals: list[Row] = field(default_factory=list)
    """The same, of evaluations; keys without their `eval_`."""
    health: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    """Lines that are no JSON object with a step, a torn last one aside."""
    written: str = ""
    """When the last row was."""

    @property
    def status(self) -> str:
        return str(self.run.get("status", "unknown"))

    @property
    def method(self) -> str:
        return str(self.run.get("method", "?"))

    @property
    def kept(self) -> Row:
        """The evaluation of what is in model/: the last, or with early stopping the best."""
        best = self.run.get("best_step")
        of_best = [row for row in self.evals if row["step"] == best]
        return (of_best or self.evals)[-1]

    @property
    def last_step(self) -> int:
        return max((int(row["step"]) for row in (*self.rows, *self.evals)), default=0)

    @property
    def ties_at_start(self) -> bool:
        """The policy began as its own reference, so that no side was likelier than there."""
        return "step_zero" in self.run and not self.at("reference.name_or_path")

    @property
    def eval_rows(self) -> int | None:
        kept = as_dict(as_dict(self.run.get("data")).get("eval")).get("kept")
        return kept if isinstance(kept, int) else None

    def at(self, path: str) -> Any:
        """A value of the recipe by its dotted path; None where there is none."""
        value: Any = self.recipe
        for key in path.split("."):
            value = as_dict(value).get(key)
        return value


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def find_run(name: str | Path) -> Path:
    """The run folder that is meant, also by a file of it, its model/ or a checkpoint in it.

    RecipeError where there is none.
    """
    path = Path(name)
    if not path.exists():
        raise RecipeError(f"{name}: there is no such folder", hint="name a run's output_dir")
    for folder in (path, path.absolute().parent):
        if any((folder / sign).is_file() for sign in _SIGNS):
            return folder
    inside = sorted(str(p.parent) for sign in _SIGNS for p in path.glob(f"*/{sign}"))
    runs = list(dict.fromkeys(inside))
    raise RecipeError(
        f"{name}: no run folder, there is no run.json in it",
        hint=f"of the runs in it, name one or more: {', '.join(runs[:8])}"
        + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
        if runs
        else "name a run's output_dir",
    )


def read_run(name: str | Path) -> Run:
    """All that is known of a run. RecipeError where `name` is none."""
    path = find_run(name)
    text = _text(path / "recipe.yaml")
    metrics, broken = _lines(path / "metrics.jsonl")
    rows = sorted(metrics, key=lambda row: float(row["step"]))
    health, broken_health = _lines(path / "health.jsonl")
    samples, broken_samples = _lines(path / "samples.jsonl")
    run = Run(
        path=path, name=path.absolute().name, run=_json(path / "run.json"), recipe=_yaml(text)
    )
    return replace(
        run,
        recipe_text=text,
        rows=[_numbers(row, run) for row in rows if not _is_eval(row)],
        evals=[_numbers(row, run) for row in rows if _is_eval(row)],
        health=sorted(health, key=lambda advice: float(advice["step"])),
        samples=samples,
        unreadable=broken + broken_health + broken_samples,
        written=_written(path / "metrics.jsonl"),
    )


def _is_eval(row: Row) -> bool:
    return any(key.startswith("eval_") for key in row)


def _numbers(row: Row, run: Run) -> Row:
    """What is not finite is None, whoever wrote it; an accuracy over nothing but ties is none."""
    # The row of the first step is of the policy before it.
    tied = run.ties_at_start and row["step"] <= 1 - _is_eval(row)
    return {
        key.removeprefix("eval_"): value if _is_finite(value) else None
        for key, value in row.items()
        if (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)))
        and not (tied and "rewards/accuracies" in key)
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return as_dict(json.loads(_text(path) or "{}"))
    except (ValueError, RecursionError):
        return {}


def _yaml(text: str) -> dict[str, Any]:
    try:
        return as_dict(yaml.safe_load(text))
    except yaml.YAMLError:
        return {}


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(objects with a step, lines that are none); a last line without its end is not counted."""
    *whole, torn = _text(path).split("\n")
    read = [_entry(line) for line in (*whole, torn) if line.strip()]
    found = [entry for entry in read if entry is not None]
    return found, len(read) - len(found) - (bool(torn.strip()) and read[-1] is None)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = as_dict(json.loads(line))
    except (ValueError, RecursionError):
        return None
    step = entry.get("step")
    return entry if _is_finite(step) else None


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _written(path: Path) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(path.stat().st_mtime))
    except OSError:
        return ""
