"""Problems with what the command line names, instead of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pydantic import ValidationError

from prefcli.errors import PrefcliError, Problem, RecipeError
from prefcli.recipe.sections import Model


@contextmanager
def named_by(argument: str) -> Iterator[None]:
    """Give problems with an argument its name as their place; it has no line in the recipe.

    argument: its name, which is also the section that these problems have as their path.
    """
    try:
        yield
    except PrefcliError as error:
        raise type(error)([_placed(problem, argument) for problem in error.problems]) from None


def _placed(problem: Problem, argument: str) -> Problem:
    section = (problem.path or "").partition(".")[0].partition("[")[0]
    if section != argument:
        return problem
    return replace(problem, path=None, place=problem.place or argument)


def model_argument(name: str, argument: str) -> Model:
    """Return the section of a model that the command line names. Raises RecipeError."""
    try:
        return Model(name_or_path=name)
    except ValidationError:
        raise RecipeError(
            f"{name!r} is neither a hub id nor an existing folder",
            code="MDL001",
            place=argument,
            hint="name the folder of a model, an adapter or a run, or a hub id OWNER/NAME",
        ) from None
