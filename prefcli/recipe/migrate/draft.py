"""The recipe that a migration builds, with the list of what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe.source_map import Key, Places, dotted

TRL_TOOLS = ("trl", "alignment-handbook", "W&B")
"""The tools whose defaults are those of trl."""


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
    """An unfinished recipe, with the changes, notes and problems so far.

    The rules use trl's name of a setting, whatever the tool's name is.
    """

    tool: str
    data: dict[str, Any]
    """The file's values by trl's names."""
    places: Places
    method: str
    devices: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The tool's defaults of keys that are not in the file, if prefcli's default differs."""
    spelling: Mapping[str, Key] = field(default_factory=dict)
    """The path of each key in the file."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The tool's names of keys that are not in the file."""
    overridden: tuple[str, ...] = ()
    """The dotted paths of the recipe that the command line sets."""
    values: dict[str, Any] = field(default_factory=dict)
    """The recipe, by dotted path."""
    origins: dict[str, Key] = field(default_factory=dict)
    """The place in the file that each dotted path of the recipe came from."""
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)
    """The defaults that were written into the recipe."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    handled: set[str] = field(default_factory=set)
    """Keys that were written, dropped or refused."""
    row_types: set[str] = field(default_factory=set)
    """The formats of the training rows, where the file names them."""

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

    def at(self, key: str, *inside: str | int) -> Key:
        """Return the path in the file of a key, or of a place inside it."""
        return (*self.spelling.get(key, (self.names.get(key, key),)), *inside)

    def name(self, key: str) -> str:
        """Return the tool's name of a key."""
        return dotted(self.at(key))

    def sets(self, path: str) -> bool:
        """Return whether the command line sets this path, or a part of it."""
        return any(f"{given}.".startswith((f"{path}.", f"{path}[")) for given in self.overridden)

    def put(self, path: str, value: Any, key: str, *inside: str | int) -> None:
        """Write `value` to `path` of the recipe; it came from `key`, or from a place inside it.

        A path that another key of the file was written to is a problem, unless the values agree.
        """
        origin = self.at(key, *inside)
        self.handled.add(key)
        if path in self.overridden:
            self.drop(key, f"the command line sets {path}", *inside)
        elif (first := self.origins.get(path)) is not None and first != origin:
            if self.values[path] == value:
                self.drop(key, f"{dotted(first)} sets {path} to the same value", *inside)
            else:
                self.refuse(
                    key,
                    f"sets {path} to {value}, and {dotted(first)} sets it to {self.values[path]}",
                    *inside,
                    code="RCP168",
                    hint=f"remove {dotted(origin)} or {dotted(first)}",
                )
        else:
            self.values[path] = value
            self.origins[path] = origin
            if key not in self.data:
                self.assumed[self.name(key)] = self.defaults.get(key, value)
            elif path.rpartition(".")[2] != origin[-1] or value != self.data[key]:
                self.renamed.append(Renamed(dotted(origin), self.places.key(origin), path, value))

    def put_given(self, path: str, key: str) -> None:
        """Write the file's value, unless it is null or missing."""
        if (value := self.given(key)) is not None:
            self.put(path, value, key)

    def drop(self, key: str, reason: str, *inside: str | int) -> None:
        """Record why `key` is not needed, if the file has it."""
        self.handled.add(key)
        if key in self.data:
            origin = self.at(key, *inside)
            self.dropped.append(Dropped(dotted(origin), self.places.key(origin), reason))

    def refuse(
        self,
        key: str,
        message: str,
        *inside: str | int,
        code: str,
        hint: str | None = None,
        path: str | None = None,
    ) -> None:
        """Record a problem of `key`, or of a place inside it.

        path: the path of the recipe that would be missing; the command line may set it instead.
        """
        self.handled.add(key)
        if path is not None and self.sets(path):
            self.drop(key, f"the command line sets {path}", *inside)
            return
        origin = self.at(key, *inside)
        self.problems.append(
            Problem(message, self.places.key(origin), dotted(origin), hint, code=code)
        )

    def note(self, text: str) -> None:
        """Add a line for the reader of the recipe."""
        if text not in self.notes:
            self.notes.append(text)
