"""What a row shape is: raw dict in, canonical row out; pure, and torch is never near."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.methods.base import RowKind

Raw = Mapping[str, Any]
Row = dict[str, Any]


class RowError(ValueError):
    """A row that is not of its shape: what was found and what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        self.found = found
        self.expected = expected
        super().__init__(f"found {found}; expected {expected}")


class Format(ABC):
    """One row shape. Canonical rows hold text (str) or messages (list of role and content)."""

    name: ClassVar[str]
    kind: ClassVar[RowKind]
    columns: ClassVar[str]
    """The shape in words, for messages to the user."""

    @abstractmethod
    def claims(self, row: Raw) -> bool:
        """Does the first row of a source have this shape? Looks at columns and types only."""

    @abstractmethod
    def convert(self, row: Raw) -> Row:
        """The canonical row. Raises RowError where this row is not of the shape."""


def has(row: Raw, *columns: str) -> bool:
    """All columns are there; a column of nulls counts as there, so that its rows are reported."""
    return all(column in row for column in columns)


def describe(value: Any) -> str:
    """A value in few words, for an error about a row."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        keys = sorted(map(str, value))
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        return f"an object with keys {', '.join(repr(k[:40]) for k in keys[:5])}{more}"
    return f"{type(value).__name__} {value!r}"[:60]
