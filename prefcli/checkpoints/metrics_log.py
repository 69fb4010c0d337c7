"""The logs of a run, one JSON object per line: metrics, health, samples and held-out rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefcli.checkpoints.atomic import write_text, writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import warn
from prefcli.health import Advice, upgrade_advice
from prefcli.metrics import Row, is_eval
from prefcli.report.run_data import (
    COMPLETIONS_FILE,
    HEALTH_FILE,
    METRICS_FILE,
    PAIRS_FILE,
    SAMPLES_FILE,
    read_log,
)


class MetricsLog:
    """Writes each line to disk before the next step begins. For the main process only."""

    def __init__(self, folder: RunDir) -> None:
        self.metrics, self._health = folder.metrics, folder.health

    def measured(self, row: Row) -> None:
        # JSON has no NaN: a non-finite value is written as null.
        _append(self.metrics, {k: v if is_finite(v) else None for k, v in row.items()})

    def advised(self, advice: Advice) -> None:
        _append(self._health, advice.as_dict())

    def rows(self) -> list[dict[str, float | None]]:
        """Read the metrics that an earlier process of this run measured."""
        return entries_of(self.metrics)

    def advice(self) -> list[dict[str, Any]]:
        return [upgrade_advice(entry) for entry in entries_of(self._health)]


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def truncate_logs(folder: RunDir, step: int, *, evaluation: bool = False) -> None:
    """Drop the lines after `step`, which will be trained and logged again.

    evaluation: also drop the lines of the evaluation at the step itself.
    """
    for path in folder.logs:
        if path.exists():
            lines = _lines_up_to(step, path, without_evaluation=evaluation)
            write_text(path, "".join(f"{line}\n" for line in lines))


def _lines_up_to(step: int, path: Path, *, without_evaluation: bool) -> Iterator[str]:
    entries, unreadable = _read(path)
    if unreadable:
        warn(f"{path.name}: {unreadable} lines can't be read and are dropped")
    for line, entry in entries:
        is_evaluation = "prompt" in entry or is_eval(entry)
        last = step - 1 if without_evaluation and is_evaluation else step
        if entry["step"] <= last:
            yield line


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Return the content of the lines that prefcli can have written; none without a file."""
    return [entry for _, entry in _read(path)[0]]


def _read(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    return read_log(path, _VALID[path.name])


def _is_metrics(entry: Mapping[str, Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in entry.values())


def _is_advice(entry: Mapping[str, Any]) -> bool:
    advice = upgrade_advice(dict(entry))
    return all(isinstance(advice.get(key), str) for key in ("rule", "level"))


def _is_sample(entry: Mapping[str, Any]) -> bool:
    answers = (entry.get(key, {}) for key in ("policy", "reference"))
    return (
        isinstance(entry.get("place"), str)
        and "prompt" in entry
        and all(isinstance(answer, dict) for answer in answers)
    )


def _is_of_a_row(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("place"), str) and "prompt" in entry


_VALID: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    METRICS_FILE: _is_metrics,
    HEALTH_FILE: _is_advice,
    SAMPLES_FILE: _is_sample,
    PAIRS_FILE: _is_of_a_row,
    COMPLETIONS_FILE: _is_of_a_row,
}


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with writing(path.name), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
