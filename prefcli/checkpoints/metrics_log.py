"""The logs of a run, one JSON object per line: metrics.jsonl, health.jsonl, samples.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefcli.checkpoints.atomic import write_text, writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.health import Advice, upgrade_advice
from prefcli.metrics import Row, is_eval


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
        return _read(self.metrics)

    def advice(self) -> list[dict[str, Any]]:
        return [upgrade_advice(entry) for entry in _read(self._health)]


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
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a kill cut the line short
        is_evaluation = "prompt" in row or is_eval(row)
        last = step - 1 if without_evaluation and is_evaluation else step
        if row["step"] <= last:
            yield line


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with writing(path.name), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
