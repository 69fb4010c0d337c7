"""What is found in a split: counted, judged by the recipe's thresholds, and put into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefcli.errors import Problem
from prefcli.recipe.data_checks import DataChecks

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
    "several of the prompt's last tokens merge with the completion": "seams",
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

    @property
    def words(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{DataChecks.words(self.name).what}{note}"

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.count} of {self.total} rows ({percent(self.share)}): "
            f"{self.words}; first: {', '.join(self.first)}"
        )

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
            match level(finding, checks):
                case "error":
                    errors.append(_problem(split, finding, str(finding), "error", checks))
                case "warning":
                    words = f"{finding.name}: {percent(finding.share)} of the rows: {finding.words}"
                    warnings.append(_problem(split, finding, words, "warn", checks))
    return warnings, errors


def _problem(split: str, finding: Finding, words: str, key: str, checks: DataChecks) -> Problem:
    limit = getattr(getattr(checks, finding.name), key)
    path = f"data.checks.{finding.name}.{key}"
    more = f"more than {percent(limit)}" if limit else "and none is expected"
    cure = DataChecks.words(finding.name).cure
    return Problem(
        f"{split}: {words}, {more}",
        path=path if key == "error" else None,
        hint=f"{cure}; or allow it with {path}={_above(finding.share)}",
    )


def percent(share: float) -> str:
    """Three digits: 12 %, 0.00484 %."""
    return f"{100 * share:.3g} %"


def _above(share: float) -> str:
    """A threshold, of two digits, that lets the share pass."""
    for digits in range(2, 9):
        rounded = round(share + 0.5 * 10**-digits, digits)
        if share <= rounded <= 1.0:
            return f"{rounded:g}"
    return "1"
