"""A source of a recipe -> raw rows, each with its file and its number there."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from datasets import ReadInstruction

from prefcli.data.hub_datasets import read_hub
from prefcli.data.local_files import read_local
from prefcli.data.readers import RawFile, from_dataset
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.formats import Raw, RowError
from prefcli.recipe.paths import is_local
from prefcli.recipe.sections import Source
from prefcli.text import did_you_mean, last_line


@dataclass(frozen=True)
class RawRows:
    """The rows of a source, with columns renamed."""

    parts: list[RawFile]
    renamed: dict[str, str]
    """prefcli's column name: the name in the data."""
    indices: Sequence[int]
    """Indices over all parts."""

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def column_names(self) -> list[str]:
        names = dict.fromkeys(name for part in self.parts for name in part.columns)
        return list(self._rename(names))

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a row and its number there."""
        part, at = self._find(index)
        return part.name, part.numbers[at]

    def row(self, index: int) -> Raw:
        """Return a row with all columns, missing ones as null. Raises RowError if it is invalid."""
        part, at = self._find(index)
        return {**dict.fromkeys(self.column_names), **self._rename(part.rows[at])}

    def as_written(self, index: int) -> Raw:
        """Return a row with the columns that it has in the data. Raises RowError."""
        part, at = self._find(index)
        return part.rows[at]

    def __getitem__(self, column: str) -> list[Any]:
        """Return all values of a column. Raises DataError if a row is invalid."""
        values = []
        for index in range(len(self)):
            try:
                values.append(self.row(index)[column])
            except RowError as error:
                file, number = self.place(index)
                raise DataError(
                    str(error), code="DAT010", place=f"{file}: row {number}", hint=error.hint
                ) from None
        return values

    def _find(self, index: int) -> tuple[RawFile, int]:
        at = self.indices[index]
        part = bisect_right(self._ends, at)
        return self.parts[part], at - (self._ends[part - 1] if part else 0)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part.rows) for part in self.parts))

    def _rename(self, row: Raw) -> Raw:
        if not self.renamed:
            return row
        touched = {*self.renamed, *self.renamed.values()}
        rest = {name: value for name, value in row.items() if name not in touched}
        return rest | {name: row.get(original) for name, original in self.renamed.items()}


def read(source: Source, where: str) -> RawRows:
    """Read all rows of the source and rename columns. `where` is its dotted path in the recipe."""
    split, slice_spec = _split(source, where)
    parts = (
        read_local(source, split, where)
        if is_local(source.path)
        else [from_dataset(read_hub(source, split, where), source.path)]
    )
    count = sum(len(part.rows) for part in parts)
    if not count:
        raise DataError("the source has no rows", code="DAT002", place=source.path)
    rows = RawRows(parts, {}, _slice(source, split, slice_spec, count, where))
    if not len(rows):
        raise RecipeError(
            Problem(
                f"{source.split} selects none of the {count} rows",
                path=f"{where}.split",
                hint="choose a larger slice",
                code="DAT005",
            )
        )
    if rows.column_names:
        _check_columns(rows, source, where)
    return replace(rows, renamed=dict(source.columns))


def _split(source: Source, where: str) -> tuple[str, str]:
    """Divide a split into its name and its slice: train and [:1000].

    The complete split is read and sliced here, so that rows keep their numbers.
    """
    match = re.fullmatch(r"([\w.-]+)(\[.*\])?", source.split or "train")
    try:
        if match is not None:
            ReadInstruction.from_spec(match[0])
            return match[1], match[2] or ""
    except ValueError:
        pass
    raise RecipeError(
        Problem(
            f"{source.split!r} is not a valid split",
            path=f"{where}.split",
            hint="write a name, or a slice such as train[:1000] or train[90%:]; to join splits, "
            "list them as sources",
            code="DAT005",
        )
    )


def _slice(source: Source, split: str, slice_spec: str, count: int, where: str) -> range:
    if not slice_spec:
        return range(count)
    try:
        (part,) = ReadInstruction.from_spec(f"{split}{slice_spec}").to_absolute({split: count})
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            Problem(
                f"{source.split}: {last_line(error)}",
                path=f"{where}.split",
                hint="write a slice such as train[:1000] or train[90%:]",
                code="DAT005",
            )
        ) from None
    return range(part.from_ or 0, count if part.to is None else part.to)


def _check_columns(rows: RawRows, source: Source, where: str) -> None:
    names = rows.column_names
    problems = [
        Problem(
            f"no column {original!r} in {source.path}; it has {', '.join(names)}",
            path=f"{where}.columns.{name}",
            hint=did_you_mean(original, names)
            or (
                f"the keys are prefcli's names: write {{{original}: {name}}}"
                if name in names
                else f"write one of {', '.join(names)}"
            ),
            code="DAT009",
        )
        for name, original in source.columns.items()
        if original not in names
    ]
    if problems:
        raise RecipeError(problems)
