"""Findings of the data checks: how many rows they concern, and what the recipe's limits say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prefcli.errors import Problem
from prefcli.formats.base import BAD_LABEL, PARTED, TURNS
from prefcli.formats.training_marks import ALL_MASKED
from prefcli.recipe.sections import DataChecks

LONGER = "longer than max_length, and a reward model needs the end"
NO_ROOM = "the prompt leaves no room within max_length for a completion"
REPEATED = "the prompt is a duplicate of an earlier one"

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
    NO_ROOM: "long_prompts",
    REPEATED: None,
    "chosen and rejected are identical once the chat template is applied": "identical_tokens",
    "chosen and rejected are identical once tokenized": "identical_tokens",
    "chosen and rejected are identical after the cut at max_length": "identical_after_cut",
    LONGER: "cut",
    "several of the prompt's last tokens merge with the completion": "prompt_boundary",
    PARTED: "parted",
    TURNS: "turns",
    BAD_LABEL: "bad_label",
    "no assistant token within max_length": "nothing_trained",
    "no assistant token marked by the chat template": "nothing_trained",
    ALL_MASKED: "nothing_trained",
    "label is false (sft uses only rows labelled true)": None,
}
"""Why a row is dropped: the finding of `data.checks` that it counts for, if any."""

_SHOWN_ROWS = 3


@dataclass
class Tally:
    """The number of rows with one property, and the places of the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: Callable[[], str]) -> None:
        """Count a row. place: its file and number, called only if it will be shown."""
        self.count += 1
        if len(self.first) < _SHOWN_ROWS:
            self.first.append(place())

    def add_all(self, indices: npt.NDArray[np.int64], place: Callable[[int], str]) -> None:
        """Count rows. place: file and number of an index, called only if it will be shown."""
        self.count += len(indices)
        missing = _SHOWN_ROWS - len(self.first)
        self.first += [place(int(at)) for at in indices[: max(missing, 0)]]

    def join(self, other: Tally) -> None:
        """Count the rows of another tally as well."""
        self.count += other.count
        self.first = [*self.first, *other.first][:_SHOWN_ROWS]

    @property
    def rows(self) -> str:
        """The first rows as text."""
        return join_places(self.first)


@dataclass(frozen=True)
class Finding:
    """The rows of a split that one of the `data.checks` is true of."""

    name: str
    count: int
    total: int
    first: list[str]
    """Places of the first rows."""
    remaining: int
    """Rows that are trained on; the others are among the split's dropped rows."""
    note: str = ""
    """Details as text."""
    cure: str = ""
    """What to do about it, if that depends on the rows."""

    @property
    def share(self) -> float:
        return self.count / self.total

    def __str__(self) -> str:
        return self.line()

    def line(self, limit: str = "") -> str:
        """Describe the finding on one line. limit: the exceeded limit as text."""
        share = f"{percent(self.share)}{limit}"
        rows = f"{self.count} of {self.total} rows ({share})"
        is_usual = not limit and self.share <= DataChecks.words(self.name).usual
        places = "" if is_usual else f"; first: {join_places(self.first)}"
        return f"{self.name}: {rows}: {self.meaning}{places}"

    @property
    def meaning(self) -> str:
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
    """Compare a finding with the recipe's limits."""
    limits = getattr(checks, finding.name)
    if limits.error is not None and finding.share > limits.error:
        return "error"
    if limits.warn is not None and finding.share > limits.warn:
        return "warning"
    return "note"


def judge(
    splits: Mapping[str, Sequence[Finding]], checks: DataChecks
) -> tuple[list[Problem], list[Problem]]:
    """Return (warnings, errors) for the findings of all splits, by name of the split.

    An error has all details; the details of a warning are among the lines of the split.
    """
    warnings: list[Problem] = []
    errors: list[Problem] = []
    for split, findings in splits.items():
        for finding in findings:
            severity = level(finding, checks)
            if severity == "note":
                continue
            key = "error" if severity == "error" else "warn"
            path = f"data.checks.{finding.name}.{key}"
            threshold = getattr(getattr(checks, finding.name), key)
            limit = f", more than {percent(threshold)}" if threshold else ", and none is expected"
            hint = (
                f"{finding.cure or DataChecks.words(finding.name).cure}; or allow it with {path}="
                f"{_above(finding.share)}"
            )
            if severity == "error":
                message = f"{split}: {finding.line(limit)}"
                errors.append(Problem(message, path=path, hint=hint, code="DAT014"))
            else:
                message = f"{split}: {finding.name}: {percent(finding.share)} of the rows{limit}"
                if finding.cure:
                    message += f": {finding.meaning}"
                warnings.append(Problem(message, hint=hint, code="DAT014"))
    return warnings, errors


def join_places(places: Sequence[str]) -> str:
    """Join places and name each file once: a.jsonl: row 2, row 3, b.jsonl: row 1."""
    parts, last_file = [], None
    for place in places:
        file, _, row = place.rpartition(": ")
        parts.append(row if file == last_file else place)
        last_file = file
    return ", ".join(parts)


def percent(share: float) -> str:
    """Format a share with three digits: 12 %, 0.00484 %."""
    return f"{100 * share:.3g} %"


def _above(share: float) -> str:
    """Round a share up to a threshold of few digits."""
    digits = 2
    while (rounded := math.ceil(share * 10**digits) / 10**digits) > 1.5 * share:
        digits += 1
    return f"{rounded:g}"
