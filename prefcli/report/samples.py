"""What a model answered to the same prompts before and after."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefcli.report.run_data import Run, as_dict


class Answer(NamedTuple):
    title: str
    text: str | None
    now: bool = False


class Sample(NamedTuple):
    place: str
    prompt: str
    told: list[Answer]
    """Greedy at the start and at the end, the reference's, and the data's own."""
    more: list[Answer]
    """Drawn by a seed, and at the steps between."""


def samples(run: Run) -> list[Sample]:
    """One for each prompt, in the order of the file."""
    by_prompt: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in run.samples:
        key = str(row.get("place", "")), str(row.get("prompt", ""))
        by_prompt.setdefault(key, []).append(row)
    return [_sample(place, prompt, rows) for (place, prompt), rows in by_prompt.items()]


def _sample(place: str, prompt: str, rows: list[dict[str, Any]]) -> Sample:
    rows = sorted(rows, key=lambda row: float(row["step"]))
    first, last = rows[0], rows[-1]
    start = _answer(first, "policy", "greedy")
    held = _answer(last, "reference", "greedy")
    told = [
        *([Answer(_at(first), start)] if first is not last else []),
        Answer(_at(last), _answer(last, "policy", "greedy"), now=True),
        # A reference that is the starting policy says the same again.
        *([Answer("the reference", held)] if held != start else []),
        Answer("chosen in the data", _text(last.get("chosen"))),
        Answer("rejected in the data", _text(last.get("rejected"))),
    ]
    between = [
        Answer(f"{_at(row)}, greedy", _answer(row, "policy", "greedy")) for row in rows[1:-1]
    ]
    drawn = [Answer(f"{_at(row)}, sampled", _answer(row, "policy", "sampled")) for row in rows]
    reference = Answer("the reference, sampled", _answer(last, "reference", "sampled"))
    more = [*between, *drawn, reference]
    return Sample(place, prompt, _given(told), _given(more))


def _given(told: list[Answer]) -> list[Answer]:
    return [each for each in told if each.text is not None]


def _at(row: dict[str, Any]) -> str:
    return f"step {int(row['step'])}"


def _answer(row: dict[str, Any], who: str, how: str) -> str | None:
    return _text(as_dict(row.get(who)).get(how))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
