"""The judge of a run that samples completions, tried before the run depends on it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from prefcli.console import say
from prefcli.data import Split
from prefcli.evaluation.arguments import model_argument
from prefcli.evaluation.generate import model_of_run
from prefcli.evaluation.judges import Judge, open_judge, required_judge
from prefcli.evaluation.on_policy.judging import try_judge
from prefcli.formats.chat_columns import template_columns
from prefcli.methods import Method
from prefcli.model import count_parameters, load_base_config
from prefcli.model.base_model import with_merged_adapter
from prefcli.model.loading import empty_model
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Model
from prefcli.recipe.sections.model import RewardModel


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


def judge_parameters(recipe: Recipe) -> int:
    """Return the number of parameters of the models that the judge loads. Raises RecipeError.

    The reference of an implicit reward has the size of its policy.
    """
    judge = recipe.judge
    if judge is None:
        return 0
    if (reward := judge.reward_model) is not None:
        return _parameters(reward.name_or_path, reward.revision, "judge.reward_model", RewardModel)
    if (implicit := judge.implicit_reward) is not None:
        return 2 * _parameters(implicit.name_or_path, None, "judge.implicit_reward", Model)
    return 0


@functools.cache
def _parameters(name: str, revision: str | None, where: str, kind: type[Model]) -> int:
    named = model_argument(model_of_run(name), f"{where}.name_or_path")
    options = with_merged_adapter(kind.model_construct(**dict(named) | {"revision": revision}))
    config = load_base_config(options, where=where)
    return count_parameters(empty_model(config, options, where))[0]


def check_judge(recipe: Recipe, method: Method, train: Split) -> None:
    """Try the judge and close it again. Raises RecipeError."""
    with judge_of_run(recipe, method, train):
        pass
