"""Counts of raw rows before they are tokenized: dropped, invalid, or read only in part."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefcli.data.findings import DROPS, Tally, percent
from prefcli.errors import DataError, Problem
from prefcli.formats import RowError
from prefcli.formats.base import describe
from prefcli.formats.unread import cure

_SHOWN_CAUSES = 10
_SHOWN_VALUES = 3


@dataclass
class Unread:
    """The rows in which one column or key of messages has a value that is not read."""

    example: str
    cure: str | None
    """What to do about it if it changes training in other tools."""
    rows: Tally = field(default_factory=Tally)


@dataclass
class Account:
    """The counts of a split's raw rows, added source by source."""

    dropped: dict[str, Tally] = field(default_factory=dict)
    """Rows by the reason to drop them, a key of DROPS."""
    values: dict[str, Counter[str]] = field(default_factory=dict)
    """The values found in the rows that were dropped for an error, by reason."""
    unread: dict[str, Unread] = field(default_factory=dict)
    incomplete: Tally = field(default_factory=Tally)
    """Rows with an unread value that changes training in other tools."""
    counted: dict[str, Tally] = field(default_factory=dict)
    """Rows of other findings, which are kept."""
    detail_counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Details of these findings."""
    notes: dict[str, Tally] = field(default_factory=dict)
    """Rows that were read in a way that the user should know, by that way."""

    def drop(self, reason: str, place: str, value: str = "") -> None:
        """Count a dropped row."""
        self.dropped.setdefault(reason, Tally()).add(lambda: place)
        if value:
            self.values.setdefault(reason, Counter())[value] += 1

    def leave_unread(
        self, values: Mapping[str, Any], place: Callable[[], str], *, chat: bool
    ) -> None:
        """Count the unread values of a row. chat: the row holds messages."""
        for name, value in values.items():
            entry = self.unread.setdefault(name, Unread(describe(value), cure(name, chat=chat)))
            entry.rows.add(place)
        if any(self.unread[name].cure for name in values):
            self.incomplete.add(place)

    def note(self, text: str, place: Callable[[], str]) -> None:
        """Count a row that was read in a way that the user should know."""
        self.notes.setdefault(text, Tally()).add(place)

    def count(self, finding: str, detail: str, place: Callable[[], str]) -> None:
        """Count a row for a finding of `data.checks`; the row is kept."""
        self.counted.setdefault(finding, Tally()).add(place)
        self.detail_counts.setdefault(finding, Counter())[detail] += 1

    def tallies(self) -> dict[str, Tally]:
        """Return the rows of each finding of `data.checks`."""
        tallies = copy.deepcopy(self.counted)
        for reason, rows in self.dropped.items():
            if (name := DROPS[reason]) is not None:
                tallies.setdefault(name, Tally()).join(rows)
        if self.incomplete.count:
            tallies["unread"] = self.incomplete
        return tallies

    def details(self) -> dict[str, str]:
        """Return details of these findings as text."""
        details = {
            name: f"found {_counted(values)}"
            for reason, values in self.values.items()
            if (name := DROPS[reason]) is not None
        }
        details |= {
            name: ", ".join(f"{detail} in {count}" for detail, count in counts.items())
            for name, counts in self.detail_counts.items()
        }
        if self.incomplete.count:
            details["unread"] = self._unread_text(harmful=True)
        return details

    @property
    def unread_cure(self) -> str:
        """The advice for each unread value that changes training in other tools."""
        cures: dict[str, list[str]] = {}
        for name, entry in self.unread.items():
            if entry.cure is not None:
                cures.setdefault(entry.cure, []).append(name)
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in cures.items())

    def lines(self) -> list[str]:
        """Return the notes, and name the unread values that change training nowhere."""
        text = self._unread_text(harmful=False)
        return [
            *(f"{rows.count} rows: {note}" for note, rows in self.notes.items()),
            *([f"not read: {text}"] if text else []),
        ]

    def _unread_text(self, *, harmful: bool) -> str:
        return ", ".join(
            f"{name} in {entry.rows.count} (such as {entry.example})"
            for name, entry in self.unread.items()
            if (entry.cure is not None) == harmful
        )


@dataclass
class InvalidRows:
    """The invalid rows of a source, grouped by cause."""

    count: int = 0
    _causes: dict[str, _Cause] = field(default_factory=dict)
    """By what was expected."""

    def add(self, error: RowError, place: str) -> None:
        """Count a row."""
        self.count += 1
        cause = self._causes.setdefault(error.expected, _Cause(hint=error.hint))
        cause.rows.add(lambda: place)
        cause.values[error.actual] += 1

    def error(self, total: int, file: str) -> DataError:
        """Return one problem for each cause. total: rows of the source that were read."""
        causes = sorted(self._causes.items(), key=lambda cause: -cause[1].rows.count)
        problems = [cause.problem(expected, total) for expected, cause in causes[:_SHOWN_CAUSES]]
        if rest := sum(cause.rows.count for _, cause in causes[_SHOWN_CAUSES:]):
            message = f"and {rest} more invalid row{'s'[: rest > 1]}"
            problems.append(Problem(message, place=file, code="DAT010"))
        return DataError(problems)


@dataclass
class _Cause:
    rows: Tally = field(default_factory=Tally)
    values: Counter[str] = field(default_factory=Counter)
    hint: str | None = None
    """The cure of its first row."""

    def problem(self, expected: str, total: int) -> Problem:
        count = self.rows.count
        rows = "" if count == 1 else f"{count} of {total} rows ({percent(count / total)}): "
        return Problem(
            f"{rows}found {_counted(self.values)}; expected {expected}",
            place=self.rows.rows,
            hint=self.hint,
            code="DAT010",
        )


def _counted(values: Counter[str]) -> str:
    shown = [
        value if len(values) == 1 else f"{value} ({count})"
        for value, count in values.most_common(_SHOWN_VALUES)
    ]
    rest = len(values) - len(shown)
    return ", ".join([*shown, f"and {rest} other values"] if rest else shown)
