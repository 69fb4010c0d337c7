"""Access tokens in a recipe or an override: refused, and hidden before a message quotes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.source_map import Places, dotted, leaves, put
from prefcli.secrets import HIDDEN, is_secret, redact

__all__ = ["hide", "is_secret", "mask", "refuse"]


def refuse(place: str, path: str | None = None) -> Problem:
    """The problem of an access token at a place."""
    return Problem(
        "this looks like an access token",
        place=place,
        path=path,
        hint="remove it, and run `hf auth login` or export HF_TOKEN",
        code="RCP015",
    )


def mask(data: Any, places: Places) -> list[Problem]:
    """Report every token, and hide it in `data` so that no later message can quote it."""
    problems = []
    for path, value in list(leaves(data)):
        if isinstance(value, str) and is_secret(value):
            problems.append(refuse(places.value(path), dotted(path)))
            put(data, path, HIDDEN)
    return problems


def hide(problem: Problem) -> Problem:
    """Hide tokens that got into a problem as a key, a tag or through a library's message."""
    return replace(
        problem,
        message=redact(problem.message),
        place=problem.place and redact(problem.place),
        path=problem.path and redact(problem.path),
        hint=problem.hint and redact(problem.hint),
    )
