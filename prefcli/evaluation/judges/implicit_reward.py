"""The implicit reward of a trained policy as a judge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from prefcli.errors import Problem, RecipeError
from prefcli.evaluation.generate import model_of_run
from prefcli.evaluation.judges.base import Judge
from prefcli.evaluation.judges.reward_model import ModelJudge
from prefcli.evaluation.scorers import RewardFormula, policy_scorer
from prefcli.methods import METHODS
from prefcli.recipe import Recipe, load
from prefcli.recipe.sections import ImplicitRewardJudge
from prefcli.report.run_data import RECIPE_FILE, read_run

_SECTION = "judge.implicit_reward"
_ABOUT_REFERENCE = ("MDL041", "MDL042")
"""Codes of policies that can't be compared with their reference."""


@contextmanager
def implicit_reward_judge(recipe: Recipe, options: ImplicitRewardJudge) -> Iterator[Judge]:
    """Load a policy and its reference until the block ends. Raises RecipeError."""
    name = options.name_or_path
    formula = RewardFormula(beta=1.0, with_reference=True, per_token=False)
    if os.path.isfile(os.path.join(name, RECIPE_FILE)):
        recipe, formula = _of_run(name)
    if options.beta is not None:
        formula = replace(formula, beta=options.beta)
    with ExitStack() as stack:
        try:
            scorer = stack.enter_context(policy_scorer(recipe, model_of_run(name), formula))
        except RecipeError as error:
            raise RecipeError([_with_cure(problem) for problem in error.problems]) from None
        settings = {f"{_SECTION}.name_or_path": name}
        yield ModelJudge(scorer, settings, chat=False)


def _with_cure(problem: Problem) -> Problem:
    """Name the keys of the judge instead of options of `prefcli score`."""
    if problem.code not in _ABOUT_REFERENCE:
        return problem
    cure = f"name a trained policy of the reference's family in {_SECTION}.name_or_path"
    return replace(problem, path=f"{_SECTION}.name_or_path", hint=cure)


def _of_run(folder: str) -> tuple[Recipe, RewardFormula]:
    """Return the recipe of a run and the reward of its method."""
    recipe = load(os.path.join(folder, RECIPE_FILE), []).recipe
    ran = read_run(folder).method
    method = recipe.methods.get(ran) or METHODS[ran]()
    return recipe, RewardFormula(
        beta=method.reward_scale,
        with_reference=method.needs_reference,
        per_token=not method.reward_is_sum,
    )
