"""Problems with what the command line names, instead of the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pydantic import ValidationError

from prefcli.errors import PrefcliError, Problem, RecipeError
from prefcli.recipe.sections import Model


@contextmanager
def named_by(argument: str, section: str | None = None) -> Iterator[None]:
    """Give problems with an argument its name as their place; it has no line in the recipe.

    section: the first part of the path that these problems have; by default the argument's name.
    """
    try:
        yield
    except PrefcliError as error:
        placed = [_placed(problem, argument, section or argument) for problem in error.problems]
        raise type(error)(placed) from None


def _placed(problem: Problem, argument: str, section: str) -> Problem:
    if (problem.path or "").partition(".")[0].partition("[")[0] != section:
        return problem
    return replace(problem, path=None, place=problem.place or argument)


def model_argument(name: str, argument: str) -> Model:
    """Return the section of a model that the command line names. Raises RecipeError."""
    if os.path.isfile(os.path.expanduser(name)):
        raise RecipeError(
            f"{name} is a file",
            code="MDL001",
            place=argument,
            hint="name the folder of a model, an adapter or a run, or a hub id OWNER/NAME",
        )
    try:
        return Model(name_or_path=name)
    except ValidationError:
        raise RecipeError(
            f"{name!r} is neither a hub id nor an existing folder",
            code="MDL001",
            place=argument,
            hint="name the folder of a model, an adapter or a run, or a hub id OWNER/NAME",
        ) from None
