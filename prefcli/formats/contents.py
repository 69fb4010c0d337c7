"""Checks of what a canonical row says: scores of its sides, and turns inside its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prefcli.formats.base import Raw, Row

_SIDES = ("chosen", "rejected", "completion")
_HUMAN = "\n\nHuman:"


def score_columns(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of columns that may hold the scores of chosen and rejected, by their names."""
    known = list(names)
    twins = [(name, name.replace("chosen", "rejected")) for name in known if name != "chosen"]
    return [pair for pair in twins if pair[0] != pair[1] and pair[1] in known]


def compare_scores(raw: Raw, columns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (finding, detail) where chosen's score is not above rejected's.

    An empty finding stands for scores that agree with the preference.
    """
    for chosen, rejected in columns:
        scores = raw.get(chosen), raw.get(rejected)
        if not all(isinstance(s, int | float) and not isinstance(s, bool) for s in scores):
            continue
        finding = ""
        if scores[0] < scores[1]:  # type: ignore[operator]
            finding = "score_contradictions"
        elif scores[0] == scores[1]:
            finding = "score_ties"
        yield finding, f"{chosen} and {rejected}"


def holds_user_turn(row: Row) -> bool:
    """Check the answers of a row for a turn of the user."""
    return any(_has_user_turn(row[side]) for side in _SIDES if side in row)


def _has_user_turn(answer: Any) -> bool:
    if isinstance(answer, str):
        return _HUMAN in answer
    return len(answer) > 1 and any(message["role"] == "user" for message in answer)
