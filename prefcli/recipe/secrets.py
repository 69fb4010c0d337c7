"""Access tokens: found in a recipe, an override or the environment, and never echoed."""

from __future__ import annotations

import re
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.places import Places, dotted, leaves, put

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})"
)
_HIDDEN = "(hidden)"


def is_secret(text: str) -> bool:
    return bool(_TOKEN.search(text))


def refuse(place: str, path: str | None = None) -> Problem:
    return Problem(
        "this looks like an access token",
        place=place,
        path=path,
        hint="keep it out of recipes and job files: `hf auth login`, or export HF_TOKEN",
    )


def mask(data: Any, places: Places) -> list[Problem]:
    """Report every token, and take it out of `data` so that no later message can quote it."""
    problems = []
    for path, value in list(leaves(data)):
        if isinstance(value, str) and is_secret(value):
            problems.append(refuse(places.value(path), dotted(path)))
            put(data, path, _HIDDEN)
    return problems


def hide(problem: Problem) -> Problem:
    """The last gate: tokens that came in as a key, a tag or through a library's message."""
    return Problem(
        _TOKEN.sub(_HIDDEN, problem.message),
        place=problem.place and _TOKEN.sub(_HIDDEN, problem.place),
        path=problem.path and _TOKEN.sub(_HIDDEN, problem.path),
        hint=problem.hint and _TOKEN.sub(_HIDDEN, problem.hint),
    )
