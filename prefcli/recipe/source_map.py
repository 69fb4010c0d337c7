"""The places of a recipe's keys and values in its file, and dotted paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str | int, ...]
Mark = tuple[int, int]


@dataclass
class Places:
    """The places of a recipe's keys and values: line and column, or an override."""

    source: str
    keys: dict[Key, Mark] = field(default_factory=dict)
    values: dict[Key, Mark] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)
    """Paths that are set on the command line, and the override's text."""

    def overridden(self, path: Key, text: str) -> None:
        """Record that `text` set `path`, which replaces earlier overrides below it."""
        self.overrides = {p: t for p, t in self.overrides.items() if p[: len(path)] != path}
        self.overrides[path] = text

    def key(self, path: Key) -> str:
        """The place of a key, or of the nearest section around it."""
        return self._place(path, self.keys)

    def value(self, path: Key) -> str:
        """The place of a value, or of the nearest section around it."""
        return self._place(path, self.values)

    def _place(self, path: Key, marks: dict[Key, Mark]) -> str:
        # A single source may be written without its list: data.train[0].path is at data.train.path.
        plain = tuple(p for p in path if not isinstance(p, int))
        for candidate in (path, plain):
            if override := self._override(candidate):
                return f"override {override!r}"
        while path:
            for candidate in (path, plain):
                if candidate in marks:
                    line, column = marks[candidate]
                    return f"{self.source}:{line}:{column}"
            path, plain = path[:-1], plain[:-1]
            marks = self.keys
        return f"{self.source}:1:1"

    def _override(self, path: Key) -> str | None:
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return self.overrides[path[:end]]
        for set_path, text in self.overrides.items():
            if path and set_path[: len(path)] == path and path not in self.keys:
                return text
        return None


def dotted(path: Key) -> str:
    """The path as text: data.train[0].path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def leaves(data: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value that is not a section or a list, with its path."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from leaves(value, (*path, i))
    else:
        yield path, data


def put(data: Any, path: Key, value: Any) -> None:
    """Replace the value at a path that exists."""
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value
