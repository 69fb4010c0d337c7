"""Scores of completions, written as they come."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from prefcli.console import say, warn
from prefcli.errors import PrefcliError
from prefcli.evaluation.generate import Prompt
from prefcli.evaluation.judges import Completion, Judge
from prefcli.evaluation.on_policy.sampling import Number
from prefcli.evaluation.partial_file import PartialFile
from prefcli.progress_bar import progress

Scores = dict[Number, float | None]
_ANSWERS = ("yes", "no")
"""Texts that a judge is tried on."""


def try_judge(judge: Judge, prompt: Prompt, place: str, template: Mapping[str, Any]) -> str:
    """Let a judge score two texts, before hours of sampling; return what it gave.

    place: of the prompt. template: columns that its chat template is called with.
    """
    tried = f"a test of the judge, {place}"
    scores = judge.score_all([Completion(prompt, text, tried, template) for text in _ANSWERS])
    shown = ", ".join(
        f"{'null' if score is None else format(score, '.3g')} for {text!r}"
        for text, score in zip(_ANSWERS, scores, strict=True)
    )
    return f"{judge.description} gives {shown} as an answer to the first prompt"


def read_scores(partial: PartialFile, judge: Judge) -> Scores:
    """Return the scores of an earlier start, and warn if the judge's code has changed since."""
    scores: Scores = {}
    code: dict[str, str] = {}
    for value in partial.values():
        if isinstance(value, dict):
            code = value
        else:
            scores |= {(prompt, number): score for prompt, number, score in value}
    now = dict(judge.code)
    if code != now:
        if scores:
            names = ", ".join(name for name in now if code.get(name) != now[name])
            warn(
                f"{names} has changed since {len(scores):,} completions were judged; their scores "
                f"are not computed again (delete {partial.path} for that)"
            )
        partial.add(now)
    return scores


def judge_completions(
    judge: Judge, completions: Mapping[Number, Completion], scores: Scores, partial: PartialFile
) -> None:
    """Add the scores that are missing to `scores` and to the file. Raises RecipeError."""
    total = len(completions)
    # The groups are those of an uninterrupted start.
    numbers, size = iter(completions), judge.rows_at_once or max(total, 1)
    try:
        with progress("judge", total, "completions", done=len(scores)) as count:
            while group := list(islice(numbers, size)):
                missing = [number for number in group if number not in scores]
                rows = [completions[number] for number in missing]
                for part in judge.score(rows) if rows else ():
                    ready = {missing[i]: score for i, score in part.items()}
                    partial.add([(*number, score) for number, score in ready.items()])
                    scores |= ready
                    count(len(ready))
    except PrefcliError:
        say(f"judge: {len(scores):,} of {total:,} completions are judged, in {partial.path}")
        raise
