"""Load a recipe from a file and KEY=VALUE overrides, and report every mistake at once."""

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
from prefcli.recipe.context_length import with_max_length
from prefcli.recipe.overrides import key_path, override
from prefcli.recipe.schema import Recipe
from prefcli.recipe.source_map import Key, Places, leaves, put
from prefcli.recipe.validation_errors import explain, in_data
from prefcli.recipe.yaml_reader import number_or_flag, parse, read_text

__all__ = ["Loaded", "leaves", "load", "load_text"]


@dataclass(frozen=True)
class Loaded:
    """A recipe and the places of its values."""

    recipe: Recipe
    places: Places

    def locate(self, problem: Problem) -> Problem:
        """Add the place of a problem's dotted path, if it has none."""
        if problem.place or not problem.path:
            return problem
        place = self.places.value(key_path(problem.path) or ())
        return replace(problem, place=place)


def load(path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override, interpolate and validate. Raises RecipeError with every problem found."""
    with _hidden_tokens():
        return _load(read_text(path), path, overrides)


def load_text(text: str, source: str) -> Loaded:
    """Load a recipe from text; `source` is the file name in places."""
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
        # Paths that are already reported are not in the data. Rules between sections (no path) are
        # reported only if the sections are valid.
        reported = {p.path for p in problems if p.path}
        for problem in explain(error, data, places, reported):
            if not problems or problem.path is not None:
                problems.append(problem)
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_in_file_order))
    return Loaded(with_max_length(recipe), places)


def _validate(data: dict[str, Any], loose: dict[Key, str]) -> Recipe:
    """Validate; text from an environment variable becomes a number if text is not valid."""
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
    match = re.search(r":(\d+):(\d+)$", problem.place or "")
    return (int(match[1]), int(match[2])) if match else (10**9, 0)
