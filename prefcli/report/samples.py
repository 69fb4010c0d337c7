"""The answers of a model to the same prompts, before and after training."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefcli.report.run_data import Run, as_dict, as_list


class Answer(NamedTuple):
    """One answer, and who gave it when."""

    title: str
    text: str | None
    is_final: bool = False
    is_cut: bool = False
    """It reached samples.max_new_tokens."""
    is_data: bool = False


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
    start = _answer(_at(first), first, "policy", "greedy")
    reference = _answer("reference", last, "reference", "greedy")
    answers = [
        *([start] if first is not last else []),
        _answer(_at(last), last, "policy", "greedy")._replace(is_final=True),
        # A reference that is the starting policy gives the same answer again.
        *([reference] if reference.text != start.text else []),
        *(
            Answer(f"{side} in the data", _text(last.get(side)), is_data=True)
            for side in ("chosen", "rejected")
        ),
    ]
    other_answers = [
        *(_answer(f"{_at(row)}, greedy", row, "policy", "greedy") for row in rows[1:-1]),
        *(_answer(f"{_at(row)}, sampled", row, "policy", "sampled") for row in rows),
        _answer("reference, sampled", last, "reference", "sampled"),
    ]
    return Sample(place, prompt, _given(answers), _given(other_answers))


def _given(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.text is not None]


def _at(row: dict[str, Any]) -> str:
    return f"step {int(row['step'])}"


def _answer(title: str, row: dict[str, Any], model: str, decoding: str) -> Answer:
    answers = as_dict(row.get(model))
    is_cut = decoding in as_list(answers.get("cut"))
    return Answer(title, _text(answers.get(decoding)), is_cut=is_cut)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
