"""Judges: what scores completions. A new judge is a file, a section of `judge` and a line here."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefcli.errors import RecipeError
from prefcli.evaluation.judges.base import Completion, Judge, Scores
from prefcli.evaluation.judges.executable import Executable
from prefcli.evaluation.judges.function import Function
from prefcli.evaluation.judges.implicit_reward import implicit_reward_judge
from prefcli.evaluation.judges.reward_model import reward_model_judge
from prefcli.recipe import Recipe
from prefcli.recipe.schema import JUDGE_EXAMPLE
from prefcli.recipe.sections import Judge as JudgeOptions


def required_judge(recipe: Recipe) -> JudgeOptions:
    """Return the recipe's judge. Raises RecipeError if it has none."""
    if recipe.judge is None:
        raise RecipeError(
            "the recipe has no judge",
            code="JDG008",
            hint=JUDGE_EXAMPLE,
        )
    return recipe.judge


@contextmanager
def open_judge(recipe: Recipe, options: JudgeOptions) -> Iterator[Judge]:
    """Load or start the judge until the block ends. Raises RecipeError.

    options: not stored scores, which need no judge.
    """
    if options.reward_model is not None:
        with reward_model_judge(recipe, options.reward_model) as judge:
            yield judge
    elif options.implicit_reward is not None:
        with implicit_reward_judge(recipe, options.implicit_reward) as judge:
            yield judge
    elif options.function is not None:
        yield Function(options.function)
    else:
        assert options.executable is not None
        program = Executable(options.executable)
        try:
            yield program
        except BaseException:
            program.close(kill=True)
            raise
        program.close()


__all__ = ["Completion", "Judge", "Scores", "open_judge", "required_judge"]
