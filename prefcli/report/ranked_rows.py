"""The held-out rows with the lowest and the highest margins, from held_out.jsonl."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefcli.report.run_data import Run


class RankedRow(NamedTuple):
    """A held-out pair, or a labelled row, with its score and its text."""

    score: str
    is_wrong: bool
    tokens: str
    """Of chosen and rejected."""
    place: str
    prompt: str
    chosen: str | None
    rejected: str | None


class Ranking(NamedTuple):
    """The rows of one evaluation in ascending order of their scores."""

    step: int
    are_pairs: bool
    lowest: list[RankedRow]
    highest: list[RankedRow]


def ranking(run: Run) -> Ranking | None:
    """Return the rows of the model's evaluation, or of the last one that has any."""
    if not run.ranked:
        return None
    steps = {int(row["step"]) for row in run.ranked}
    step = int(run.model_eval["step"] or 0) if run.evals else -1
    step = step if step in steps else max(steps)
    entries = [row for row in run.ranked if int(row["step"]) == step]
    rows = sorted((row for row in entries if _is_number(row.get("score"))), key=_score)
    if not rows:
        return None
    middle = -(-2 * len(rows) // 3)
    return Ranking(
        step,
        "chosen_reward" in rows[0],
        [_row(row) for row in rows[:middle]],
        [_row(row) for row in rows[middle:]][::-1],
    )


def _row(row: dict[str, Any]) -> RankedRow:
    counts = [row[key] for key in ("chosen_tokens", "rejected_tokens", "tokens") if key in row]
    return RankedRow(
        f"{_score(row):+.3f}",
        _score(row) <= 0,
        " / ".join(f"{count:g}" for count in counts if _is_number(count)),
        str(row.get("place", "")).rpartition("/")[2],
        str(row.get("prompt", "")),
        _text(row.get("chosen")),
        _text(row.get("rejected")),
    )


def _score(row: dict[str, Any]) -> float:
    return float(row["score"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
