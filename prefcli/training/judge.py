"""The judge of a run that samples completions, tried before the run depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefcli.console import say
from prefcli.data import Split
from prefcli.evaluation.judges import Judge, open_judge, required_judge
from prefcli.evaluation.on_policy.judging import try_judge
from prefcli.formats.chat_columns import template_columns
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe


@contextmanager
def judge_of_run(recipe: Recipe, method: Method, train: Split) -> Iterator[Judge | None]:
    """Load or start the judge, and let it score an answer; None for methods without one.

    Raises RecipeError.
    """
    if not method.needs_judge:
        yield None
        return
    with open_judge(recipe, required_judge(recipe)) as judge:
        row = train.rows[0]
        template = template_columns(row)
        say(f"judge: {try_judge(judge, row['prompt'], train.place(0), template)}")
        yield judge


def check_judge(recipe: Recipe, method: Method, train: Split) -> None:
    """Try the judge and close it again. Raises RecipeError."""
    with judge_of_run(recipe, method, train):
        pass
