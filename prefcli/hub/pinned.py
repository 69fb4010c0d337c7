"""The commits of the hub in run.json; a run that goes on with others is told so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.console import warn
from prefcli.hub.commits import Commits, commits, differences
from prefcli.recipe.schema import Recipe


def pin(recipe: Recipe, before: Mapping[str, Any]) -> Commits:
    """What the run takes from the hub. before: run.json as an earlier part of the run left it."""
    found = commits(recipe)
    for line in differences(before.get("hub", []), found):
        warn(f"{line}; to stay with a commit, name it as the revision in the recipe")
    return found
