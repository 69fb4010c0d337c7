"""A file, KEY=VALUE overrides and interpolation become a Recipe; all mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import interpolation, secrets
from prefcli.recipe.overrides import key_path, override
from prefcli.recipe.schema import Recipe
from prefcli.recipe.source_map import Key, Places, leaves, put
from prefcli.recipe.validation_errors import explain, in_data
from prefcli.recipe.yaml_reader import number_or_flag, parse, read_text

__all__ = ["Loaded", "leaves", "load", "load_text"]


@dataclass(frozen=True)
class Loaded:
    """A recipe and where its values were written."""

    recipe: Recipe
    places: Places

    def locate(self, problem: Problem) -> Problem:
        """The same problem with the place of its dotted path, if it names one."""
        if problem.place or not problem.path:
            return problem
        place = self.places.value(key_path(problem.path) or ())
        return replace(problem, place=place)


def load(path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override, interpolate and validate. Raises RecipeError with every problem found."""
    with _hidden_tokens():
        return _load(read_text(path), path, overrides)


def load_text(text: str, source: str) -> Loaded:
    """The same for a recipe that is in no file; `source` stands for its name in places."""
    with _hidden_tokens():
        return _load(text, source, ())


@contextmanager
def _hidden_tokens() -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise RecipeError([secrets.hide(p) for p in error.problems]) from None


def _load(text: str, source: str, overrides: Sequence[str]) -> Loaded:
    data, places, problems = parse(text, source)
    problems += override(data, overrides, places)
    problems += secrets.mask(data, places)
    loose, unresolved = interpolation.resolve(data, Path(source), places)
    problems += unresolved
    recipe: Recipe | None = None
    try:
        recipe = _validate(data, loose)
    except ValidationError as error:
        # A path that is already reported was taken out of the data; the rules between sections
        # (no path) say something only once the sections are right.
        told = {p.path for p in problems if p.path}
        for problem in explain(error, data, places, told):
            if not problems or problem.path is not None:
                problems.append(problem)
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_in_file_order))
    return Loaded(recipe, places)


def _validate(data: dict[str, Any], loose: dict[Key, str]) -> Recipe:
    """An environment variable is text: it becomes a number only where text is not wanted."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        refused = {in_data(detail["loc"], data)[0] for detail in error.errors(include_url=False)}
        if not loose.keys() & refused:
            raise
    for at in loose.keys() & refused:
        put(data, at, number_or_flag(loose[at]))
    return Recipe.model_validate(data)


def _in_file_order(problem: Problem) -> tuple[int, int]:
    found = re.search(r":(\d+):(\d+)$", problem.place or "")
    return (int(found[1]), int(found[2])) if found else (10**9, 0)
