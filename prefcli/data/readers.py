"""Files -> raw rows, read strictly: the shapes see what stands in the file, and nothing else.

datasets' own JSON and CSV readers guess types over a whole column (a prompt "2024-01-01" becomes a
date, 5 among texts becomes "5", "None" in a CSV becomes null), fall back to other parsers, and
name no row when they fail.
"""

from __future__ import annotations

import csv
import json
import mmap
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, load_dataset

from prefcli.errors import DataError, RecipeError
from prefcli.formats import Raw, RowError
from prefcli.formats.base import describe

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1000
ROWS_TRIED = 100


@dataclass(frozen=True)
class Part:
    """The rows of one file or dataset. Looking a row up may raise RowError about it alone."""

    file: str
    rows: Sequence[Raw]
    columns: list[str]
    numbers: Sequence[int]
    """What each row is called in messages: its line in JSON lines, else 1 for the first row."""
    fingerprint: str = ""
    """Of what datasets has read; files have none."""


def read_file(path: Path, shown: str, label: str) -> Part:
    """Raises DataError, and RecipeError where the file can't be opened.

    shown: the file as the user wrote it. label: the column that holds labels, if there is one.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty", place=shown)
        match path.suffix.lower():
            case ".csv":
                return _csv(path, shown, label)
            case ".parquet":
                return _parquet(path, shown)
            case _:
                return _json(path, shown)
    except OSError as error:
        raise RecipeError(f"can't be opened: {error.strerror or error}", place=shown) from None


def part_of(rows: Dataset, file: str) -> Part:
    """A datasets.Dataset as a part."""
    columns, numbers = list(rows.column_names), range(1, len(rows) + 1)
    return Part(file, Blocks(rows), columns, numbers, rows._fingerprint)


class LazyRows(Sequence[Raw]):
    """Rows that are made when they are asked for."""

    @abstractmethod
    def row(self, index: int) -> Raw:
        """The row at an index."""

    @overload
    def __getitem__(self, index: int) -> Raw: ...
    @overload
    def __getitem__(self, index: slice) -> list[Raw]: ...
    def __getitem__(self, index: int | slice) -> Raw | list[Raw]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.row(index)


class Blocks(LazyRows):
    """A Dataset that is read in order: decoding a thousand rows at once is ten times as fast."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows
        self._start = -1
        self._block: list[Raw] = []

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Raw:
        start = index - index % _BLOCK
        if start != self._start:
            columns = self._rows[start : start + _BLOCK]
            self._block = [
                dict(zip(columns, values, strict=True))
                for values in zip(*columns.values(), strict=True)
            ]
            self._start = start
        return self._block[index - start]


class JsonLines(LazyRows):
    """One JSON object a line, parsed when it is asked for; blank lines are none."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._spans: list[tuple[int, int]] = []
        self.numbers: list[int] = []
        start = len(_BOM) if self._text[: len(_BOM)] == _BOM else 0
        number = 0
        while start < len(self._text):
            # Only \n ends a line: U+2028 and its like may stand inside JSON strings.
            end = self._text.find(b"\n", start)
            end = len(self._text) if end < 0 else end
            number += 1
            if self._text[start:end].strip():
                self._spans.append((start, end))
                self.numbers.append(number)
            start = end + 1

    def head(self) -> str:
        """The first character that is no space."""
        start, end = self._spans[0] if self._spans else (0, 0)
        return self._text[start:end].decode("utf-8", "replace").lstrip()[:1]

    @property
    def starts_with_json(self) -> bool:
        """Is the first line JSON by itself?"""
        try:
            _parse(self._text[slice(*self._spans[0])])
        except RowError:
            return False
        return True

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, index: int) -> Raw:
        start, end = self._spans[index]
        return _object(_parse(self._text[start:end]))


class Objects(list[Any]):
    """The elements of a JSON array; one that is no object is an error when it is asked for."""

    def __getitem__(self, index: Any) -> Any:
        return _object(super().__getitem__(index))


def _json(path: Path, shown: str) -> Part:
    lines = JsonLines(path)
    head = lines.head()
    rows: Sequence[Raw] = lines
    numbers: Sequence[int] = lines.numbers
    if head in ("[", "{") and not (lines.starts_with_json and (head == "{" or len(lines) > 1)):
        whole = _whole(path, shown, strict=head == "[")
        if isinstance(whole, list):
            rows = Objects(whole)
            numbers = range(1, len(rows) + 1)
        elif isinstance(whole, dict):
            raise _one_object(whole, shown)
    return Part(shown, rows, _columns(rows), numbers)


def _columns(rows: Sequence[Raw]) -> list[str]:
    """Of the first rows, those that can be read; JSON may leave a column out of any row."""
    names: dict[str, None] = {}
    for i in range(min(len(rows), ROWS_TRIED)):
        try:
            names |= dict.fromkeys(rows[i])
        except RowError:
            continue
    return list(names)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        text = line.decode("utf-8").strip()
        raise RowError(
            f"{describe(text)}, which is not JSON (column {error.colno}: {error.msg})",
            "one JSON object a line",
        ) from None
    except (ValueError, RecursionError) as error:
        raise RowError(_unreadable(error), "one JSON object a line, in UTF-8") from None


def _object(value: Any) -> Raw:
    if not isinstance(value, dict):
        raise RowError(describe(value), "an object with columns, as in {...}")
    return value


def _whole(path: Path, shown: str, *, strict: bool) -> Any:
    """The file as one JSON value; None where it is none and `strict` is false."""
    try:
        return json.loads(path.read_bytes().removeprefix(_BOM).decode("utf-8"))
    except json.JSONDecodeError as error:
        if not strict:
            return None
        raise DataError(
            f"not JSON: {error.msg}",
            place=f"{shown}:{error.lineno}:{error.colno}",
            hint="an array of objects, or one object a line, is expected",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"found {_unreadable(error)}; expected JSON in UTF-8", place=shown
        ) from None


def _one_object(value: dict[str, Any], shown: str) -> DataError:
    lists = [key for key, rows in value.items() if isinstance(rows, list)]
    return DataError(
        f"found one object with keys {', '.join(map(repr, list(value)[:5]))} over the whole file; "
        "expected an array of rows, or one row a line",
        place=shown,
        hint=f"write the array under {lists[0]!r} to a file of its own" if lists else None,
    )


def _unreadable(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8 "
            "(`iconv -f latin1 -t utf8` converts old western files)"
        )
    if isinstance(error, RecursionError):
        return "lists or objects nested too deep"
    return "a number of too many digits"


def _parquet(path: Path, shown: str) -> Part:
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:
        raise DataError(f"no readable parquet: {last_line(error)}", place=shown) from None
    return part_of(rows, shown)


def _csv(path: Path, shown: str, label: str) -> Part:
    csv.field_size_limit(sys.maxsize)
    rows: list[Raw] = []
    try:
        # strict: a quote that never closes would swallow the rest of the file in silence.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for cells in reader:
                if cells:
                    rows.append(_cells(header, cells, label, f"{shown}: row {len(rows) + 1}"))
    except UnicodeDecodeError as error:
        raise DataError(f"found {_unreadable(error)}; expected UTF-8", place=shown) from None
    except csv.Error as error:
        raise DataError(
            f"not CSV: {error}",
            place=f"{shown}: row {len(rows) + 1}",
            hint='put text with commas, quotes or line ends in "...", and double the quotes inside',
        ) from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"the column {twice[0]!r} stands twice in the header", place=shown)
    return Part(shown, rows, header, range(1, len(rows) + 1))


def _cells(header: list[str], cells: list[str], label: str, place: str) -> Raw:
    if len(cells) != len(header):
        raise DataError(
            f"found {len(cells)} cells; expected {len(header)}, as in the header "
            f"({', '.join(header)})",
            place=place,
            hint='put text with commas in "..."',
        )
    # A cell has no type; true and false are what every writer of CSV makes of a label.
    return {
        name: {"true": True, "false": False}.get(cell.lower(), cell) if name == label else cell
        for name, cell in zip(header, cells, strict=True)
    }


def last_line(error: BaseException) -> str:
    """The last line of what a library says."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[-1].strip()[:300] if lines else type(error).__name__
