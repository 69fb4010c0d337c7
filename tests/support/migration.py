"""Configs of other tools, migrated in a temporary folder."""

from pathlib import Path

from prefcli.errors import Problem
from prefcli.recipe import Recipe
from prefcli.recipe.load import load_text
from prefcli.recipe.migrate import Migration, migrate


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    """Write a config and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def migrated(
    folder: Path, text: str, name: str = "config.yaml", **options
) -> tuple[Recipe, Migration]:
    """Migrate a config and return the validated recipe with the migration."""
    migration = migrate(write(folder, text, name), **{"devices": 1, **options})
    assert migration.problems == []
    return load_text(migration.text, "new.yaml").recipe, migration


def problems_of(
    folder: Path, text: str, name: str = "config.yaml", **options
) -> dict[str | None, Problem]:
    """Migrate a config that can't be migrated and return its problems by key."""
    migration = migrate(write(folder, text, name), **{"devices": 1, **options})
    assert migration.text is None
    return {problem.path: problem for problem in migration.problems}


def codes_of(folder: Path, text: str, name: str = "config.yaml", **options) -> dict:
    """Migrate a config that can't be migrated and return its error codes by key."""
    return {key: p.code for key, p in problems_of(folder, text, name, **options).items()}


def line_and_column(problem: Problem) -> str:
    """Return the end of a problem's place, such as 3:1."""
    return ":".join((problem.place or "").split(":")[-2:])


def with_changes(text: str, *changes: tuple[str, str]) -> str:
    """Replace parts of a text; each part must occur in it."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text
