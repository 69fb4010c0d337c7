"""A tool whose files are understood, and the method that a file of it trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.methods import METHODS
from prefcli.recipe.migrate.base import Table
from prefcli.recipe.source_map import Places


@dataclass(frozen=True)
class Tool:
    """One tool: its name, its keys, and what it takes for keys that are left out."""

    name: str
    marks: frozenset[str]
    """Keys by one of which a file is known; asked in the order of TOOLS."""
    table: Table
    defaults: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    """Of a method, and of what the file holds."""
    trains: Callable[[Mapping[str, Any]], set[str]]
    """The methods that the file may be for, by its keys; none where prefcli lacks the method."""
    named_by: str | None = None
    """The key that names the method."""


def by_keys(table: Table, data: Mapping[str, Any]) -> set[str]:
    """The methods whose configurations have all these keys."""
    fit = set(METHODS)
    for key in data:
        if (translation := table.get(key)) is not None and translation.of is not None:
            fit &= translation.of
    return fit


def method_of(
    tool: Tool, data: Mapping[str, Any], places: Places, wanted: str | None
) -> str | Problem:
    """`wanted` is the command line's word, which must not contradict the file."""
    fit = tool.trains(data)
    named = tool.named_by if tool.named_by in data else None
    place = places.value((named,)) if named else f"{places.source}:1:1"
    if wanted is not None:
        # An ipo loss is also one of dpo's. Where keys contradict, each is told for `wanted`.
        if wanted in fit or (wanted == "dpo" and fit == {"ipo"}) or not (fit or tool.named_by):
            return wanted
        found = f"is for {' or '.join(sorted(fit))}" if fit else "is for no method of prefcli"
        return Problem(f"--method {wanted}, but by its keys the file {found}", place)
    if tool.named_by is None and (folder := _in_path(Path(places.source))):
        fit = fit if fit == {"ipo"} and folder == "dpo" else fit & {folder}
    if len(fit) == 1:
        return next(iter(fit))
    if tool.named_by and not fit:
        return Problem(f"prefcli does not train this; it has {', '.join(METHODS)}", place, named)
    names = [method for method in METHODS if method in fit]
    message = f"by its keys it is one of {', '.join(names)}" if fit else "its keys do not agree"
    return Problem(
        f"the method is in doubt: {message}",
        place,
        hint=f"pass --method {'|'.join(names or METHODS)}",
    )


def _in_path(path: Path) -> str | None:
    """The method that the file's name, or else the nearest folder, is called after."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        named = set(re.split(r"[^a-z0-9]+", part.lower())) & METHODS.keys()
        if len(named) == 1:
            return named.pop()
    return None
