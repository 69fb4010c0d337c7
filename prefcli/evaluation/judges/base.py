"""The interface of a judge: completions to scores, in the order in which they are ready."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefcli.errors import RecipeError
from prefcli.evaluation.generate import Prompt

Scores = dict[int, float | None]
"""Index of a completion: its score, or None if the judge can't score it."""
_SHOWN = 60
"""Characters of a completion in messages."""


@dataclass(frozen=True)
class Completion:
    """A completion of a prompt, to be scored."""

    prompt: Prompt
    text: str
    place: str
    """The row of its prompt and its number, for messages."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the prompt that a chat template is called with."""

    @property
    def shown(self) -> str:
        """The start of the text."""
        return repr(self.text[:_SHOWN]) + ("..." if len(self.text) > _SHOWN else "")


class Judge(ABC):
    """Scores completions; a higher score is better."""

    description: str
    settings: Mapping[str, Any]
    """Everything that the scores depend on, by key of the recipe."""
    rows_at_once: int | None = 64
    """Rows to score together, since their scores are rounded together; None: any number."""
    code: Mapping[str, str] = {}
    """Digests of the user's own files, which may be corrected between two starts."""

    @abstractmethod
    def score(self, rows: Sequence[Completion]) -> Iterator[Scores]:
        """Yield the scores of some rows as soon as they are ready. Raises RecipeError.

        Scores that are yielded together depend on which rows were given together.
        """

    def score_all(self, rows: Sequence[Completion]) -> list[float | None]:
        """Return the scores of some rows, in their order. Raises RecipeError."""
        scores = {i: score for part in self.score(rows) for i, score in part.items()}
        return [scores[i] for i in range(len(rows))]


def to_score(value: Any, row: Completion, judge: str) -> float | None:
    """Check what a judge gave for a row. Raises RecipeError unless it is finite or None."""
    if value is None:
        return None
    try:
        score = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        score = math.nan
    if not math.isfinite(score):
        raise RecipeError(
            f"{judge} gave {value!r:.60} for {row.shown}; expected a finite number or null",
            code="JDG005",
            place=row.place,
            hint="return null for a completion that can't be scored: it is dropped and counted",
        )
    return score
