"""What is found in a split: counted, judged by the recipe's thresholds, and put into words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prefcli.errors import Problem
from prefcli.recipe.sections import DataChecks

DROPS: dict[str, str | None] = {
    "empty prompt": "empty",
    "empty chosen": "empty",
    "empty rejected": "empty",
    "empty completion": "empty",
    "empty text": "empty",
    "empty assistant message": "empty",
    "the chat template writes nothing for a completion": "empty",
    "chosen and rejected are identical": "identical",
    "the prompt alone fills max_length": "long_prompts",
    "chosen and rejected are identical after the cut at max_length": "identical_after_cut",
    "several of the prompt's last tokens merge with the completion": "prompt_boundary",
    "no assistant token within max_length": None,
    "labelled false, and sft trains on what is labelled true": None,
}
"""Why a row is left out: the finding of `data.checks` that it counts for, if any."""

_SHOWN_ROWS = 3


@dataclass
class Tally:
    """Rows of which the same is to be said."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: Callable[[], str]) -> None:
        """place: file and row number, asked for only where it will be shown."""
        self.count += 1
        if len(self.first) < _SHOWN_ROWS:
            self.first.append(place())

    def add_all(self, indices: npt.NDArray[np.int64], place: Callable[[int], str]) -> None:
        """place: of an index, asked for only where it will be shown."""
        self.count += len(indices)
        missing = _SHOWN_ROWS - len(self.first)
        self.first += [place(int(at)) for at in indices[: max(missing, 0)]]

    @property
    def rows(self) -> str:
        """The first rows in words."""
        return in_words(self.first)


@dataclass(frozen=True)
class Finding:
    """How many rows of a split a field of `data.checks` is true of."""

    name: str
    count: int
    total: int
    first: list[str]
    """Places of the first rows."""
    kept: int
    """How many of them are trained on; the others are among the split's dropped rows."""
    note: str = ""
    """What more there is to know, in words."""

    @property
    def share(self) -> float:
        return self.count / self.total

    def __str__(self) -> str:
        return self.told()

    def told(self, limit: str = "") -> str:
        """All there is to know. limit: what the share is measured by, in words."""
        share = f"{percent(self.share)}{limit}"
        rows = f"{self.count} of {self.total} rows ({share})"
        usual = not limit and self.share <= DataChecks.words(self.name).usual
        places = "" if usual else f"; first: {in_words(self.first)}"
        return f"{self.name}: {rows}: {self.words}{places}"

    @property
    def words(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{DataChecks.words(self.name).what}{note}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "of": self.total,
            "share": self.share,
            "first": self.first,
            "note": self.note,
        }


Level = Literal["note", "warning", "error"]


def level(finding: Finding, checks: DataChecks) -> Level:
    limits = getattr(checks, finding.name)
    if limits.error is not None and finding.share > limits.error:
        return "error"
    if limits.warn is not None and finding.share > limits.warn:
        return "warning"
    return "note"


def judge(
    splits: Mapping[str, Sequence[Finding]], checks: DataChecks
) -> tuple[list[Problem], list[Problem]]:
    """(warnings, errors) of all splits, by their names.

    An error tells all there is to know; what a warning is about stands in the split's lines.
    """
    warnings: list[Problem] = []
    errors: list[Problem] = []
    for split, findings in splits.items():
        for finding in findings:
            how = level(finding, checks)
            key = "error" if how == "error" else "warn"
            path = f"data.checks.{finding.name}.{key}"
            limit = getattr(getattr(checks, finding.name), key)
            more = f", more than {percent(limit)}" if limit else ", and none is expected"
            hint = (
                f"{DataChecks.words(finding.name).cure}; or allow it with {path}="
                f"{_above(finding.share)}"
            )
            if how == "error":
                told = finding.told(more)
                errors.append(Problem(f"{split}: {told}", path=path, hint=hint))
            elif how == "warning":
                told = f"{finding.name}: {percent(finding.share)} of the rows{more}"
                warnings.append(Problem(f"{split}: {told}", hint=hint))
    return warnings, errors


def in_words(places: Sequence[str]) -> str:
    """a.jsonl: row 2, row 3, b.jsonl: row 1"""
    words, last = [], None
    for place in places:
        file, _, row = place.rpartition(": ")
        words.append(row if file == last else place)
        last = file
    return ", ".join(words)


def percent(share: float) -> str:
    """Three digits: 12 %, 0.00484 %."""
    return f"{100 * share:.3g} %"


def _above(share: float) -> str:
    """A threshold of few digits that lets the share pass."""
    digits = 2
    while (rounded := math.ceil(share * 10**digits) / 10**digits) > 1.5 * share:
        digits += 1
    return f"{rounded:g}"
