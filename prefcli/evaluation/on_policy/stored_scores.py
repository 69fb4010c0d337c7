"""Completions that have scores already, grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefcli.data.convert import Place
from prefcli.data.row_sampling import draw_rows
from prefcli.data.sources import RawRows, read
from prefcli.errors import DataError
from prefcli.evaluation.generate import Prompt
from prefcli.evaluation.judges.base import Completion, to_score
from prefcli.evaluation.on_policy.pairing import Candidate, ScoredPrompt
from prefcli.formats import RowError
from prefcli.formats.base import Raw, describe
from prefcli.formats.chat import complete, is_messages, to_prompt
from prefcli.formats.chat_columns import add_chat_columns
from prefcli.recipe.sections import Source

_WHERE = "judge.scores"
_LISTS = (("responses", "rewards"), ("responses", "scores"))
_SINGLES = (
    ("response", "reward"),
    ("completion", "reward"),
    ("response", "score"),
    ("completion", "score"),
)
"""Columns of completions and of their scores, in a row per prompt and in a row per completion."""


def read_stored_scores(source: Source, seed: int) -> list[ScoredPrompt]:
    """Read the completions of a source. Raises RecipeError and DataError."""
    rows = read(source, _WHERE)
    names = set(rows.column_names)
    layouts = [pair for pair in (*_LISTS, *_SINGLES) if {"prompt", *pair} <= names]
    if not layouts:
        raise DataError(
            f"found columns {', '.join(rows.column_names)}; expected prompt, responses and "
            "rewards, or prompt, response and reward",
            code="JDG009",
            place=source.path,
            hint="name them with judge.scores.columns: {reward: NAME}, or score the rows first "
            "with prefcli score",
        )
    place = Place(source.path, _WHERE, source.chat, source.prompt_template)
    prompts: dict[int, ScoredPrompt] = {}
    for index in draw_rows(source, len(rows), seed):
        row_place = "{}: row {}".format(*rows.place(index))
        try:
            prompt = _read(rows, index, place, row_place, *layouts[0])
        except RowError as error:
            raise DataError(str(error), code="DAT010", place=row_place, hint=error.hint) from None
        prompts.setdefault(prompt.key, ScoredPrompt(prompt.columns)).candidates.extend(
            prompt.candidates
        )
    return list(prompts.values())


def _read(
    rows: RawRows, index: int, place: Place, row_place: str, texts: str, scores: str
) -> ScoredPrompt:
    """Read a row. Raises RowError."""
    raw, _ = place.prepare(rows.row(index))
    is_list = (texts, scores) in _LISTS
    responses, numbers = (
        _list(raw, name) if is_list else [raw.get(name)] for name in (texts, scores)
    )
    if len(responses) != len(numbers):
        raise RowError(
            f"{len(responses)} {texts} and {len(numbers)} {scores}", "a score per completion"
        )
    prompt = to_prompt(raw["prompt"])
    if isinstance(prompt, str) and any(map(is_messages, responses)):
        prompt = [{"role": "user", "content": prompt}]
    columns, _ = add_chat_columns(raw, {"prompt": prompt}, tools=True)
    answers = [_text(complete(prompt, one, texts)) for one in responses]
    tokens, ended = (_column(raw, name, len(answers)) for name in ("tokens", "ended"))
    return ScoredPrompt(
        columns,
        [
            Candidate(
                text,
                count if isinstance(count, int) else len(text),
                end is not False,
                to_score(number, Completion(prompt, text, row_place), f"the column {scores!r}"),
            )
            for text, number, count, end in zip(answers, numbers, tokens, ended, strict=True)
        ],
    )


def _list(raw: Raw, name: str) -> list[Any]:
    """Return a column of lists. Raises RowError."""
    value = raw.get(name)
    if not isinstance(value, list):
        raise RowError(f"{describe(value)} in {name!r}", "a list")
    return value


def _text(answer: Prompt) -> str:
    """Return the text of an answer. Raises RowError if it has several turns."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1 or not isinstance(answer[0]["content"], str):
        raise RowError("a completion of several turns", "one turn of the assistant")
    return answer[0]["content"]


def _column(raw: Raw, name: str, count: int) -> Sequence[Any]:
    """Return the values of a column for each completion of a row; None where it has none."""
    value = raw.get(name)
    if isinstance(value, list) and len(value) == count:
        return value
    return [value if count == 1 else None] * count
