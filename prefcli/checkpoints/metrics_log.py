"""What a run measures and is told, line by line: metrics.jsonl and health.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefcli.checkpoints.atomic import writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.health import Advice, upgrade_advice
from prefcli.metrics import Row


class MetricsLog:
    """Each line is on disk before the next step begins. For the main process alone."""

    def __init__(self, folder: RunDir) -> None:
        self.metrics, self._health = folder.metrics, folder.health

    def measured(self, row: Row) -> None:
        # NaN is no JSON: a lost value is written as null.
        _append(self.metrics, {k: v if is_finite(v) else None for k, v in row.items()})

    def advised(self, advice: Advice) -> None:
        _append(self._health, advice.as_dict())

    def rows(self) -> list[dict[str, float | None]]:
        """Of the run so far, as another process measured them before this one took over."""
        return _read(self.metrics)

    def advice(self) -> list[dict[str, Any]]:
        return [upgrade_advice(entry) for entry in _read(self._health)]


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with writing(path.name), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
