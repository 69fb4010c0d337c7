"""Configs of other tools, migrated in a temporary folder."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

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


CASES = Path(__file__).parents[1] / "unit" / "migration_cases"


@dataclass(frozen=True)
class Case:
    """A config of the corpus with what becomes of it."""

    file: str
    number: int
    text: str
    name: str = "config.yaml"
    method: str | None = None
    devices: int | None = 1
    overrides: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    """Values of the recipe by dotted path."""
    refused: dict[str, str] = field(default_factory=dict)
    """Error codes by the key in the config."""
    note: str = ""
    other_files: dict[str, Any] = field(default_factory=dict)
    """Other files of the folder, as JSON."""
    trl: dict[str, Any] = field(default_factory=dict)
    """What the tool passes to trl."""

    def __str__(self) -> str:
        return f"{self.file}-{self.number}"

    def migrate(self, folder: Path) -> Migration:
        """Write the config to a folder and migrate it."""
        path = write(folder, self.text, self.name)
        for name, content in self.other_files.items():
            write(folder, json.dumps(content), name)
        return migrate(path, self.method, self.devices, self.overrides)

    def value(self, migration: Migration, path: str) -> Any:
        """Return a value of the migrated recipe as plain data, without defaults of sources."""
        value: Any = load_text(migration.text, "new.yaml").recipe
        for key in path.split("."):
            value = None if value is None else getattr(value, "lambda_" if key == "lambda" else key)
        if isinstance(value, list) and path.startswith("data."):
            return [source.model_dump(exclude_defaults=True) for source in value]
        return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


@functools.cache
def corpus() -> list[Case]:
    """Return every case of the corpus."""
    cases = []
    for path in sorted(CASES.glob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        for number, entry in enumerate(content["cases"]):
            base, changes = content["files"][entry.pop("file")], entry.pop("set", {})
            if isinstance(base, dict):
                data = {k: v for k, v in (base | changes).items() if k not in entry.pop("drop", [])}
                text = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
            else:
                text = "".join(f"{base}{changes.get('text', '')}")
            # A YAML tag in a case is text, which the config has without its quotes.
            text = re.sub(r"'(!!float [^']*)'", r"\1", text)
            cases.append(
                Case(path.stem, number, text, other_files=content.get("other_files", {}), **entry)
            )
    return cases
