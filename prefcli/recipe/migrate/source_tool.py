"""A tool whose configs can be migrated, and the method that a config trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.methods import METHODS
from prefcli.recipe.migrate.rules import RuleTable
from prefcli.recipe.source_map import Places


@dataclass(frozen=True)
class SourceTool:
    """A tool: its name, the rules for its keys, and its defaults."""

    name: str
    signature_keys: frozenset[str]
    """A file with one of these keys belongs to the tool; compared in the order of TOOLS."""
    table: RuleTable
    defaults: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    """Returns the defaults for a method and a file's data."""
    candidate_methods: Callable[[Mapping[str, Any]], set[str]]
    """Returns the methods that a file's keys allow; empty if prefcli does not have the method."""
    method_key: str | None = None
    """The key that names the method."""


def methods_with_keys(table: RuleTable, data: Mapping[str, Any]) -> set[str]:
    """Return the methods that have all of a file's keys."""
    methods = set(METHODS)
    for key in data:
        if (rule := table.get(key)) is not None and rule.methods is not None:
            methods &= rule.methods
    return methods


def find_method(
    tool: SourceTool, data: Mapping[str, Any], places: Places, requested: str | None
) -> str | Problem:
    """Return the method of a file. `requested` is --method, which must not contradict the file."""
    methods = tool.candidate_methods(data)
    key = tool.method_key if tool.method_key in data else None
    place = places.value((key,)) if key else f"{places.source}:1:1"
    if requested is not None:
        # dpo has an ipo loss as well. If the keys contradict each other, each is checked against
        # the requested method.
        is_dpo_loss = requested == "dpo" and methods == {"ipo"}
        if requested in methods or is_dpo_loss or not (methods or tool.method_key):
            return requested
        trains = " or ".join(sorted(methods)) if methods else "no method that prefcli has"
        return Problem(
            f"--method {requested}, but the file's keys are for {trains}", place, code="RCP153"
        )
    if tool.method_key is None and (named := _method_in_path(Path(places.source))):
        methods = methods if methods == {"ipo"} and named == "dpo" else methods & {named}
    if len(methods) == 1:
        return next(iter(methods))
    if tool.method_key and not methods:
        hint = f"prefcli trains {', '.join(METHODS)}"
        return Problem("prefcli does not have this method", place, key, hint, code="RCP154")
    names = [method for method in METHODS if method in methods]
    reason = f"the keys fit {', '.join(names)}" if names else "the keys contradict each other"
    return Problem(
        f"the method is not clear: {reason}",
        place,
        hint=f"pass --method {'|'.join(names or METHODS)}",
        code="RCP152",
    )


def _method_in_path(path: Path) -> str | None:
    """Return the method in the file's name, or in the name of the nearest folder that has one."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        methods = set(re.split(r"[^a-z0-9]+", part.lower())) & METHODS.keys()
        if len(methods) == 1:
            return methods.pop()
    return None
