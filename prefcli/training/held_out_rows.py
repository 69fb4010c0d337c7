"""The held-out rows that an evaluation ranks lowest and highest, in held_out.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import gather_object

from prefcli.checkpoints.atomic import writing
from prefcli.console import is_main_process
from prefcli.data import Split
from prefcli.evaluation.sample_prompts import row_texts
from prefcli.metrics import TIE
from prefcli.secrets import redact
from prefcli.training.mixins.metric_sums import RowScores

_LOWEST, _HIGHEST = 10, 5
_DIGITS = 6


class HeldOutRows:
    """Writes the rows with the lowest and the highest scores of each evaluation, with their text.

    The score of a pair is its margin; that of a labelled row is its reward, negated if the row is
    undesirable. Rows with a low score are those that the policy gets wrong.
    """

    def __init__(self, split: Split, path: Path) -> None:
        self._split = split
        self._path = path

    def __call__(self, step: int, scores: list[RowScores]) -> None:
        """Write the rows of an evaluation on the main process. scores: of this process's rows."""
        ranked = _extremes(gather_object(_extremes(scores)))
        if is_main_process() and any(abs(row["score"]) > TIE for row in ranked):
            with writing(self._path.name), self._path.open("a", encoding="utf-8") as file:
                file.writelines(redact(self._line(step, row)) + "\n" for row in ranked)

    def _line(self, step: int, row: RowScores) -> str:
        values = {name: round(value, _DIGITS) for name, value in row.items() if name != "row"}
        return json.dumps({"step": step, **values, **row_texts(self._split, int(row["row"]))})


def _extremes(scores: Sequence[RowScores]) -> list[RowScores]:
    """Return the rows with the lowest and the highest scores in ascending order."""
    finite = [row for row in scores if math.isfinite(row["score"])]
    ranked = sorted(finite, key=lambda row: (row["score"], row["row"]))
    return [*ranked[:_LOWEST], *ranked[_LOWEST:][-_HIGHEST:]]
