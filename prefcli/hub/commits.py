"""The commits of the models and datasets that a run uses from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefcli.console import warn
from prefcli.hub.cache import ADAPTER, Kind, commit_of, snapshot
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe

Commits = list[dict[str, str | None]]
"""The entry `hub` of run.json: one item per repository and revision; an unknown commit is null."""


class Repository(NamedTuple):
    """A repository that a recipe names, or the base of an adapter that it names."""

    path: str
    """Dotted path in the recipe."""
    kind: Kind
    name: str
    """Hub id or local path."""
    revision: str | None


def named_repositories(recipe: Recipe) -> list[Repository]:
    """Return the models and datasets that a recipe names, on the hub or local."""
    model, reference = recipe.model, recipe.reference
    repositories = [Repository("model.name_or_path", "model", model.name_or_path, model.revision)]
    if (name := model.tokenizer) is not None:
        repositories.append(Repository("model.tokenizer", "model", name, model.tokenizer_revision))
    if (name := reference.name_or_path) is not None:
        repositories.append(Repository("reference.name_or_path", "model", name, reference.revision))
    return repositories + [
        Repository(f"{path}.path", "dataset", source.path, source.revision)
        for path, source in recipe.sources
    ]


def used_commits(recipe: Recipe) -> Commits:
    """Return the commit of each repository. Call it after loading, when the cache knows them."""
    repositories = {repository[1:]: repository for repository in _on_hub(recipe)}
    return [
        {
            "kind": repository.kind,
            "name": repository.name,
            "revision": repository.revision,
            "commit": commit_of(repository.name, repository.kind, repository.revision),
        }
        for repository in repositories.values()
    ]


def changed_commits(before: Sequence[Mapping[str, Any]], now: Commits) -> list[str]:
    """Describe each repository whose commit differs; an unknown commit does not differ.

    before: the commits of an earlier part of the run.
    """
    earlier = {(e["kind"], e["name"], e["revision"]): e["commit"] for e in before}
    lines = []
    for entry in now:
        kind, name, commit = entry["kind"], entry["name"], entry["commit"]
        previous = earlier.get((kind, name, entry["revision"]))
        if None not in (previous, commit) and previous != commit:
            lines.append(f"the {kind} {name} was at commit {previous} and is now at {commit}")
    return lines


def record_commits(recipe: Recipe, earlier_run: Mapping[str, Any]) -> Commits:
    """Return the commits for run.json, and warn if one differs from the earlier run.json's."""
    commits = used_commits(recipe)
    for line in changed_commits(earlier_run.get("hub", []), commits):
        warn(f"{line}; set `revision` in the recipe to stay at one commit")
    return commits


def _on_hub(recipe: Recipe) -> Iterator[Repository]:
    """Yield the repositories on the hub, with the bases of adapters."""
    seen = set()
    for named in named_repositories(recipe):
        repository: Repository | None = named
        while repository is not None and repository not in seen:
            seen.add(repository)
            if not is_local(repository.name):
                yield repository
            repository = base_of(repository)


def base_of(adapter: Repository) -> Repository | None:
    """Return the base model of an adapter that is local or in the cache; None if there is none."""
    if adapter.kind != "model":
        return None
    local = Path(adapter.name).expanduser()
    folder = local if local.is_dir() else snapshot(adapter.name, adapter.kind, adapter.revision)
    try:
        config = json.loads((folder / ADAPTER).read_text("utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return None
    base = config.get("base_model_name_or_path")
    return Repository(adapter.path, "model", base, config.get("revision")) if base else None
