"""The answers of a model to the same prompts, before and after training."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefcli.report.run_data import Run, as_dict


class Answer(NamedTuple):
    """One answer, and who gave it when."""

    title: str
    text: str | None
    is_final: bool = False


class Sample(NamedTuple):
    """A prompt and its answers."""

    place: str
    prompt: str
    answers: list[Answer]
    """Greedy answers at the start and at the end, the reference's, and those in the data."""
    other_answers: list[Answer]
    """Sampled answers, and greedy ones of the steps between."""


def samples(run: Run) -> list[Sample]:
    """Return one sample per prompt, in the order of samples.jsonl."""
    by_prompt: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in run.samples:
        key = str(row.get("place", "")), str(row.get("prompt", ""))
        by_prompt.setdefault(key, []).append(row)
    return [_sample(place, prompt, rows) for (place, prompt), rows in by_prompt.items()]


def _sample(place: str, prompt: str, rows: list[dict[str, Any]]) -> Sample:
    rows = sorted(rows, key=lambda row: float(row["step"]))
    first, last = rows[0], rows[-1]
    start = _answer(first, "policy", "greedy")
    reference = _answer(last, "reference", "greedy")
    answers = [
        *([Answer(_at(first), start)] if first is not last else []),
        Answer(_at(last), _answer(last, "policy", "greedy"), is_final=True),
        # A reference that is the starting policy gives the same answer again.
        *([Answer("reference", reference)] if reference != start else []),
        Answer("chosen in the data", _text(last.get("chosen"))),
        Answer("rejected in the data", _text(last.get("rejected"))),
    ]
    other_answers = [
        *(Answer(f"{_at(row)}, greedy", _answer(row, "policy", "greedy")) for row in rows[1:-1]),
        *(Answer(f"{_at(row)}, sampled", _answer(row, "policy", "sampled")) for row in rows),
        Answer("reference, sampled", _answer(last, "reference", "sampled")),
    ]
    return Sample(place, prompt, _given(answers), _given(other_answers))


def _given(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.text is not None]


def _at(row: dict[str, Any]) -> str:
    return f"step {int(row['step'])}"


def _answer(row: dict[str, Any], model: str, decoding: str) -> str | None:
    return _text(as_dict(row.get(model)).get(decoding))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
