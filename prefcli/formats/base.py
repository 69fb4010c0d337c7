"""The interface of a row format: a pure function from a raw row to a canonical row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from prefcli.methods.base import RowKind

Raw = Mapping[str, Any]
Row = dict[str, Any]


PARTED = "the sides differ before their last turn"
TURNS = "the turns have an order that can't be trained on"
BAD_LABEL = "the label is neither true nor false"
"""Reasons to drop a row instead of stopping, as public datasets have such rows."""


MARGIN = "margin"
"""Column of a canonical pair: by how much its chosen response is better."""


class RowError(ValueError):
    """A row that does not have the format of its source. Equal `expected`: the same cause."""

    def __init__(
        self, actual: str, expected: str, *, drop: str | None = None, hint: str | None = None
    ) -> None:
        """drop: the reason to drop such rows while they are few; None: they stop the run.

        hint: the cure.
        """
        self.actual = actual
        self.expected = expected
        self.drop = drop
        self.hint = hint
        super().__init__(f"found {actual}; expected {expected}")


class Format(ABC):
    """One row format. Canonical rows hold text (str) or messages (list of role and content)."""

    name: ClassVar[str]
    kind: ClassVar[RowKind]
    reads: ClassVar[tuple[str, ...]]
    """The columns that `convert` reads; all others are counted as unread."""
    content: ClassVar[str] = ""
    """What the columns hold, if their names do not show it."""
    label_column: ClassVar[str | None] = None
    """The column of labels."""

    @property
    def columns(self) -> str:
        """The columns as text, for messages to the user."""
        return ", ".join(self.reads) + (f" ({self.content})" if self.content else "")

    @abstractmethod
    def claims(self, row: Raw) -> bool:
        """Check whether the first row of a source has this format, by columns and types only."""

    @abstractmethod
    def convert(self, row: Raw) -> Row:
        """Return the canonical row. Raises RowError if the row does not have this format."""


def has(row: Raw, *columns: str) -> bool:
    """Check that the row has all columns. A null counts, so that such rows are reported."""
    return all(column in row for column in columns)


NULL_HINT = "fill in or remove rows without a value"


def not_text(value: Any) -> str | None:
    """Return the cure for a value where a text was expected, if it shows what was meant."""
    if value is None:
        return NULL_HINT
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return "write the text itself, not a list with one text"
    if isinstance(value, int | float):
        return "write it as text, in quotes"
    return None


def describe(value: Any) -> str:
    """Describe a value in a few words, for an error about a row."""
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
        rest = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        return f"an object with keys {', '.join(repr(k[:40]) for k in keys[:5])}{rest}"
    return f"{type(value).__name__} {value!r}"[:60]
