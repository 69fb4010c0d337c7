"""Which commits of the hub's models and datasets a run used, and whether they have moved since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefcli.hub.cache import ADAPTER, Kind, commit_of, snapshot
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe

Commits = list[dict[str, str | None]]
"""As in run.json: one for each repository and revision; an unknown commit is null."""


class Wanted(NamedTuple):
    """A repository that a recipe names, or that an adapter it names lies on."""

    path: str
    """Dotted, in the recipe."""
    kind: Kind
    name: str
    revision: str | None


def wanted(recipe: Recipe) -> list[Wanted]:
    """What the recipe itself names, on the hub or here."""
    found = [
        Wanted("model.name_or_path", "model", recipe.model.name_or_path, recipe.model.revision)
    ]
    if (other := recipe.reference).name_or_path is not None:
        found.append(Wanted("reference.name_or_path", "model", other.name_or_path, other.revision))
    return found + [
        Wanted(f"{where}.path", "dataset", source.path, source.revision)
        for where, source in recipe.sources
    ]


def commits(recipe: Recipe) -> Commits:
    """To be asked once everything is loaded: by then the cache knows what was taken."""
    found = {each[1:]: each for each in _with_bases(recipe)}
    return [
        {
            "kind": each.kind,
            "name": each.name,
            "revision": each.revision,
            "commit": commit_of(each.name, each.kind, each.revision),
        }
        for each in found.values()
    ]


def differences(before: Sequence[dict[str, Any]], now: Commits) -> list[str]:
    """A line for each repository whose commit was another one; what either does not know is none.

    before: `commits` of an earlier part of the run, as run.json holds it.
    """
    known = {(e["kind"], e["name"], e["revision"]): e["commit"] for e in before}
    lines = []
    for each in now:
        was = known.get((each["kind"], each["name"], each["revision"]))
        if was is not None and each["commit"] is not None and was != each["commit"]:
            lines.append(f"the {each['kind']} {each['name']} was {was} and is {each['commit']} now")
    return lines


def _with_bases(recipe: Recipe) -> Iterator[Wanted]:
    """Those on the hub."""
    seen = set()
    for each in wanted(recipe):
        link: Wanted | None = each
        while link is not None and link not in seen:
            seen.add(link)
            if not is_local(link.name):
                yield link
            link = base_of(link)


def base_of(adapter: Wanted) -> Wanted | None:
    """What an adapter, here or in the cache, lies on; None for what is no adapter."""
    if adapter.kind != "model":
        return None
    here = Path(adapter.name).expanduser()
    folder = here if here.is_dir() else snapshot(adapter.name, adapter.kind, adapter.revision)
    try:
        config = json.loads((folder / ADAPTER).read_text("utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return None
    base = config.get("base_model_name_or_path")
    return Wanted(adapter.path, "model", base, config.get("revision")) if base else None
