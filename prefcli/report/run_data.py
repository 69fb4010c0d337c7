"""The files of a run folder as plain data. Every file may be missing or damaged."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prefcli.errors import RecipeError
from prefcli.health import upgrade_advice
from prefcli.metrics import EVAL_PREFIX, Row, is_eval, is_tie, metric

RECORD_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
HEALTH_FILE = "health.jsonl"
SAMPLES_FILE = "samples.jsonl"
PAIRS_FILE = "held_out.jsonl"
COMPLETIONS_FILE = "completions.jsonl"

_SIGNS = (RECORD_FILE, METRICS_FILE)
"""Files that make a folder a run folder."""


@dataclass(frozen=True)
class Run:
    """A run folder's files. Those of a killed or an older run may be incomplete."""

    path: Path
    name: str = "run"
    record: dict[str, Any] = field(default_factory=dict)
    """run.json."""
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    rows: list[Row] = field(default_factory=list)
    """Training rows: `step`, and numbers or None."""
    evals: list[Row] = field(default_factory=list)
    """Evaluation rows, with keys without their `eval_`."""
    advice: list[dict[str, Any]] = field(default_factory=list)
    """health.jsonl, by step."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    ranked: list[dict[str, Any]] = field(default_factory=list)
    """held_out.jsonl: the held-out rows with the lowest and the highest margins."""
    unreadable: int = 0
    """Number of lines that are not JSON objects with a step, except for a truncated last one."""
    last_written: str = ""
    """When the last metrics row was written."""

    @property
    def status(self) -> str:
        return str(self.record.get("status", "unknown"))

    @property
    def method(self) -> str:
        return str(self.record.get("method", "?"))

    @property
    def model_eval(self) -> Row:
        """The evaluation of the model in model/: the last, or with early stopping the best."""
        best = self.record.get("best_step")
        return ([row for row in self.evals if row["step"] == best] or self.evals)[-1]

    @property
    def last_step(self) -> int:
        return max((_step(row) for row in (*self.rows, *self.evals)), default=0)

    @property
    def trains_reward(self) -> bool:
        """The run trains a reward model."""
        return self.record.get("head") == "reward"

    @property
    def scores_completions(self) -> bool:
        """Evaluations score completions of the policy; their loss may be near 0 on either side."""
        return "unscored" in self.model_eval

    @property
    def subject(self) -> str:
        """The trained model in a sentence."""
        return "the reward model" if self.trains_reward else "the policy"

    def method_advice(self, name: str) -> str | None:
        """Return a change of the method's section; None in a run of an earlier version.

        name: weaken, strengthen or sft_term, in terms of how the preference moves the policy.
        """
        text = as_dict(self.record.get("advice")).get(name)
        return text if isinstance(text, str) else None

    @property
    def ties_at_start(self) -> bool:
        """The policy started as its own reference, so that all first rewards are 0."""
        return "step_zero" in self.record and not self.recipe_value("reference.name_or_path")

    @property
    def eval_rows(self) -> int | None:
        rows = as_dict(as_dict(self.record.get("data")).get("eval")).get("kept")
        return rows if isinstance(rows, int) else None

    @property
    def lineage(self) -> list[dict[str, Any]]:
        return [as_dict(stage) for stage in as_list(self.record.get("lineage"))]

    @property
    def expected_results(self) -> dict[str, dict[str, Any]]:
        """The run's metrics and the published bands they are compared with, as in run.json."""
        needed = {"value", "low", "high", "within"}
        # "anchor" is the name in runs of earlier versions.
        entries = as_dict(self.record.get("expected", self.record.get("anchor")))
        return {k: as_dict(v) for k, v in entries.items() if needed <= as_dict(v).keys()}

    @property
    def expected_source(self) -> Any:
        return self.recipe_value("expected.source") or self.recipe_value("anchor.source")

    def recipe_value(self, path: str) -> Any:
        """Return a value of the recipe by its dotted path, or None."""
        value: Any = self.recipe
        for key in path.split("."):
            value = as_dict(value).get(key)
        return value


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def format_value(key: str, value: float | None) -> str:
    """Return a metric's value as text; null in a file is NaN or infinite."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return metric(key).format(value)


def format_lineage(
    stages: Sequence[Mapping[str, Any]],
    method: str,
    *,
    this: str = "this run",
    name: Callable[[str], str] = str,
) -> str:
    """Return lineage as text: base -> sft (runs/sft/model, adapter: stack) -> dpo (this run).

    name: how a model's id or path is written.
    """
    parts = []
    for stage in stages:
        adapter = f", adapter: {stage['adapter']}" if stage.get("adapter") else ""
        model = f"{name(str(stage.get('model', '?')))}{adapter}"
        parts.append(model if stage.get("stage") == "start" else f"{stage.get('stage')} ({model})")
    return " -> ".join([*parts, f"{method} ({this})"])


def find_run(name: str | Path) -> Path:
    """Return the run folder of a path: the folder, a file in it, its model/ or a checkpoint.

    Raises RecipeError if it is not in a run folder.
    """
    path = Path(name)
    if not path.exists():
        raise RecipeError(f"{name}: no such folder", code="RUN100", hint="name a run's output_dir")
    for folder in (path, path.absolute().parent):
        if any((folder / sign).is_file() for sign in _SIGNS):
            return folder
    inside = sorted(str(p.parent) for sign in _SIGNS for p in path.glob(f"*/{sign}"))
    runs = list(dict.fromkeys(inside))
    raise RecipeError(
        f"{name} is not a run folder: it has no {RECORD_FILE}",
        code="RUN100",
        hint=f"name one or more of the runs in it: {', '.join(runs[:8])}"
        + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
        if runs
        else "name a run's output_dir",
    )


def read_run(name: str | Path) -> Run:
    """Read a run folder. Raises RecipeError if `name` is not in one."""
    path = find_run(name)
    recipe_text = _text(path / RECIPE_FILE)
    metrics, broken_metrics = _objects(path / METRICS_FILE)
    metrics.sort(key=lambda row: float(row["step"]))
    advice, broken_advice = _objects(path / HEALTH_FILE)
    samples, broken_samples = _objects(path / SAMPLES_FILE)
    ranked, broken_ranked = _objects(path / PAIRS_FILE)
    run = Run(
        path=path,
        name=path.absolute().name,
        record=_json(path / RECORD_FILE),
        recipe=_yaml(recipe_text),
    )
    return replace(
        run,
        recipe_text=recipe_text,
        rows=[_numbers(row, run) for row in metrics if not is_eval(row)],
        evals=[_numbers(row, run) for row in metrics if is_eval(row)],
        advice=sorted(map(upgrade_advice, advice), key=lambda entry: float(entry["step"])),
        samples=samples,
        ranked=ranked,
        unreadable=broken_metrics + broken_advice + broken_samples + broken_ranked,
        last_written=_modified(path / METRICS_FILE),
    )


def _step(row: Row) -> int:
    return int(row["step"] or 0)


def _numbers(row: Mapping[str, Any], run: Run) -> Row:
    """Return a row's numbers, with None for those that are not finite.

    Accuracies over nothing but ties are removed: trl counts ties as errors.
    """
    # The row of the first training step shows the policy before that step.
    is_evaluation = is_eval(row)
    starts = run.ties_at_start and row["step"] <= 1 - is_evaluation
    return {
        key.removeprefix(EVAL_PREFIX): value if _is_finite(value) else None
        for key, value in row.items()
        if (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
        and not (
            "rewards/accuracies" in key and (starts or (not is_evaluation and is_tie(row, key)))
        )
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
        loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
        return as_dict(yaml.load(text, loader))
    except yaml.YAMLError:
        return {}


def _objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    entries, unreadable = read_log(path)
    return [entry for _, entry in entries], unreadable


def read_log(
    path: Path, is_valid: Callable[[dict[str, Any]], object] = bool
) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """Return (lines that are valid objects with a step, each with its object; number of others).

    A last line that was cut short is not counted.
    """
    *complete, last = _text(path).split("\n")
    lines = [line for line in (*complete, last) if line.strip()]
    entries = [
        (line, entry) for line in lines if (entry := _entry(line)) is not None and is_valid(entry)
    ]
    cut_short = bool(last.strip()) and _entry(last) is None
    return entries, len(lines) - len(entries) - cut_short


def _entry(line: str) -> dict[str, Any] | None:
    """Read a line of a log: an object with a finite step, or None."""
    try:
        entry = as_dict(json.loads(line))
    except (ValueError, RecursionError):
        return None
    return entry if _is_finite(entry.get("step")) else None


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _modified(path: Path) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(path.stat().st_mtime))
    except OSError:
        return ""
