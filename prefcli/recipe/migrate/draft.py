"""The recipe that a migration builds, with the list of what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.source_map import Key, Places, dotted


@dataclass(frozen=True)
class Renamed:
    """A key whose name or value differs in the recipe."""

    key: str
    place: str
    path: str
    value: Any


@dataclass(frozen=True)
class Dropped:
    """A key that the recipe does not need."""

    key: str
    place: str
    reason: str


@dataclass
class Draft:
    """An unfinished recipe, with the changes, notes and problems so far."""

    tool: str
    data: dict[str, Any]
    places: Places
    method: str
    devices: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The tool's defaults of keys that are not in the file, if prefcli's default differs."""
    values: dict[str, Any] = field(default_factory=dict)
    """The recipe, by dotted path."""
    origins: dict[str, Key] = field(default_factory=dict)
    """The key that each dotted path of the recipe came from."""
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)
    """The defaults that were written into the recipe."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    handled: set[str] = field(default_factory=set)
    """Top-level keys of the file that were written, dropped or refused."""

    @property
    def folder(self) -> Path:
        return Path(self.places.source).parent

    def given(self, key: str) -> Any:
        """Return the file's value, or None."""
        return self.data.get(key)

    def value(self, key: str) -> Any:
        """Return the file's value or the tool's default."""
        value = self.data.get(key)
        return self.defaults.get(key) if value is None else value

    def put(self, path: str, value: Any, key: str, *inside: str | int) -> None:
        """Write `value` to `path` of the recipe; it came from `key`, or from a place inside it."""
        origin = (key, *inside)
        self.values[path] = value
        self.origins[path] = origin
        self.handled.add(key)
        if key not in self.data:
            self.assumed[key] = self.defaults.get(key, value)
        elif path.rpartition(".")[2] != key or value != self.data[key]:
            self.renamed.append(Renamed(dotted(origin), self.places.key(origin), path, value))

    def drop(self, key: str, reason: str, *inside: str | int) -> None:
        """Record why `key` is not needed, if the file has it."""
        self.handled.add(key)
        if key in self.data:
            origin = (key, *inside)
            self.dropped.append(Dropped(dotted(origin), self.places.key(origin), reason))

    def refuse(
        self, key: str, message: str, *inside: str | int, code: str, hint: str | None = None
    ) -> None:
        """Record a problem of `key`, or of a place inside it."""
        self.handled.add(key)
        origin = (key, *inside)
        place = self.places.key(origin)
        self.problems.append(Problem(message, place, dotted(origin), hint, code=code))

    def note(self, text: str) -> None:
        """Add a line for the reader of the recipe."""
        self.notes.append(text)
