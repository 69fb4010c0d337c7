"""Data files -> raw rows, read strictly: a row has the values of the file and nothing else.

The JSON and CSV readers of datasets guess types over a whole column (a prompt "2024-01-01" becomes
a date, 5 among texts becomes "5", "None" in a CSV becomes null), fall back to other parsers, and do
not name the row when they fail.
"""

from __future__ import annotations

import csv
import functools
import json
import mmap
import sys
from abc import abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, load_dataset

from prefcli.errors import DataError, RecipeError
from prefcli.formats import Raw, RowError
from prefcli.formats.base import describe
from prefcli.text import format_bytes, last_line

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1000
MAX_LINE = 16 * 2**20
"""Bytes of one row of JSON; to tokenize it would take a minute, before it is cut."""
ROWS_TRIED = 100
"""Rows that are read to find the columns and the format of a source."""


@dataclass(frozen=True)
class RawFile:
    """The rows of one file or dataset. Reading a row may raise a RowError about it."""

    name: str
    rows: Sequence[Raw]
    columns: list[str]
    numbers: Sequence[int]
    """The number of each row in messages: its line in JSON lines, else 1 for the first row."""
    fingerprint: str = ""
    """The fingerprint that datasets gives; empty for files that prefcli reads itself."""


def read_file(path: Path, name: str) -> RawFile:
    """Read a file. Raises DataError, and RecipeError if the file can't be opened.

    name: the file as the user wrote it.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(
                "the file is empty",
                code="DAT002",
                place=name,
                hint="write one JSON object per line, or name another file",
            )
        _refuse_wide_characters(path, name)
        match path.suffix.lower():
            case ".csv":
                return _csv(path, name)
            case ".parquet":
                return _parquet(path, name)
            case _:
                return _json(path, name)
    except OSError as error:
        raise RecipeError(
            f"can't open the file: {error.strerror or error}", code="DAT001", place=name
        ) from None


_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def _refuse_wide_characters(path: Path, name: str) -> None:
    """Raise DataError for a JSON or CSV file in UTF-16 or UTF-32."""
    with path.open("rb") as file:
        head = file.read(4)
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
    if encoding is None and len(head) == 4:  # no mark, but every second byte is zero
        high, low = (not any(head[start::2]) for start in (0, 1))
        if high != low:
            encoding = "UTF-16BE" if high else "UTF-16LE"
    if encoding is not None:
        raise DataError(
            f"the file is in {encoding}; expected UTF-8",
            code="DAT001",
            place=name,
            hint=f"convert it: `iconv -f {encoding} -t UTF-8 FILE > NEW`",
        )


def from_dataset(rows: Dataset, name: str) -> RawFile:
    """Wrap a Dataset."""
    columns, numbers = list(rows.column_names), range(1, len(rows) + 1)
    return RawFile(name, DatasetRows(rows), columns, numbers, rows._fingerprint)


class LazyRows(Sequence[Raw]):
    """Rows that are parsed when they are read."""

    @abstractmethod
    def row(self, index: int) -> Raw:
        """Parse the row at an index."""

    @overload
    def __getitem__(self, index: int) -> Raw: ...
    @overload
    def __getitem__(self, index: slice) -> list[Raw]: ...
    def __getitem__(self, index: int | slice) -> Raw | list[Raw]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.row(index)


class DatasetRows(LazyRows):
    """The rows of a Dataset, decoded in blocks: ten times as fast as row by row."""

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


@functools.lru_cache(maxsize=64)
def _mapped(path: Path, version: tuple[int, int, int]) -> mmap.mmap:
    """Map a file into memory. Few stay mapped: each one is an open file, and a source may have
    more files than a process may open."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class JsonLines(LazyRows):
    """One JSON object per line, without blank lines."""

    def __init__(self, path: Path) -> None:
        self._path, status = path, path.stat()
        self._version = status.st_ino, status.st_size, status.st_mtime_ns
        # Arrays, since a list of tuples takes ten times their memory.
        self._starts, self._ends, self.numbers = (array("q") for _ in range(3))
        text = self._text
        start = len(_BOM) if text[: len(_BOM)] == _BOM else 0
        number = 0
        while start < len(text):
            # Only \n ends a line: JSON strings may contain U+2028 and its like.
            end = text.find(b"\n", start)
            end = len(text) if end < 0 else end
            number += 1
            if text[start:end].strip():
                self._starts.append(start)
                self._ends.append(end)
                self.numbers.append(number)
            start = end + 1

    @property
    def _text(self) -> mmap.mmap:
        return _mapped(self._path, self._version)

    def head(self) -> str:
        """Return the first character that is not a space."""
        return self._line(0).decode("utf-8", "replace").lstrip()[:1] if len(self) else ""

    @property
    def starts_with_json(self) -> bool:
        """Check whether the first line is a complete JSON value."""
        try:
            _parse(self._line(0))
        except RowError:
            return False
        return True

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Raw:
        return _object(_parse(self._line(index)))

    def _line(self, index: int) -> bytes:
        return self._text[self._starts[index] : self._ends[index]]


class JsonArray(list[Any]):
    """The elements of a JSON array; reading one that is not an object raises RowError."""

    def __getitem__(self, index: Any) -> Any:
        return _object(super().__getitem__(index))


def _json(path: Path, name: str) -> RawFile:
    lines = JsonLines(path)
    head = lines.head()
    rows: Sequence[Raw] = lines
    numbers: Sequence[int] = lines.numbers
    if head in ("[", "{") and not (lines.starts_with_json and (head == "{" or len(lines) > 1)):
        value = _one_value(path, name, strict=head == "[")
        if isinstance(value, list):
            rows = JsonArray(value)
            numbers = range(1, len(rows) + 1)
        elif isinstance(value, dict):
            raise _one_object(value, name)
    return RawFile(name, rows, _columns(rows), numbers)


def _columns(rows: Sequence[Raw]) -> list[str]:
    """Collect the columns of the first valid rows; in JSON, any row may lack a column."""
    names: dict[str, None] = {}
    for i in range(min(len(rows), ROWS_TRIED)):
        try:
            names |= dict.fromkeys(rows[i])
        except RowError:
            continue
    return list(names)


def _parse(line: bytes) -> Any:
    if len(line) > MAX_LINE:
        raise RowError(
            f"a row of {format_bytes(len(line))}",
            f"at most {format_bytes(MAX_LINE)} per row",
            hint="divide the row, or remove it: no model reads so much text at once",
        )
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        text = line.decode("utf-8").strip()
        raise RowError(
            f"{describe(text)}, which is not JSON (column {error.colno}: {error.msg})",
            "one JSON object per line",
            hint=_json_cure(text, error),
        ) from None
    except (ValueError, RecursionError) as error:
        raise RowError(_undecodable(error), "one JSON object per line, in UTF-8") from None


def _json_cure(text: str, error: json.JSONDecodeError) -> str:
    """The cure for a line that is not JSON, by what it looks like."""
    if text in ("{", "["):
        return "the objects are spread over several lines: `jq -c . FILE > NEW.jsonl`"
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return "remove the comma at the end of each line"
    if text.startswith("{'"):
        return "this is Python, not JSON: write the rows with json.dumps"
    if text.startswith("{") and ("Unterminated" in error.msg or error.pos >= len(text)):
        return "the line is cut off; copy or write the file again"
    return "write each row with json.dumps, one per line"


def _object(value: Any) -> Raw:
    if not isinstance(value, dict):
        raise RowError(describe(value), 'an object such as {"prompt": ...}')
    return value


def _one_value(path: Path, name: str, *, strict: bool) -> Any:
    """Parse the file as one JSON value. Unless `strict`, None if it is not one."""
    try:
        return json.loads(path.read_bytes().removeprefix(_BOM).decode("utf-8"))
    except json.JSONDecodeError as error:
        if not strict:
            return None
        raise DataError(
            f"not JSON: {error.msg}",
            code="DAT001",
            place=f"{name}:{error.lineno}:{error.colno}",
            hint="write an array of objects, or one object per line",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"found {_undecodable(error)}; expected JSON in UTF-8", code="DAT001", place=name
        ) from None


def _one_object(value: dict[str, Any], name: str) -> DataError:
    lists = [key for key, rows in value.items() if isinstance(rows, list)]
    return DataError(
        f"the file is one object with keys {', '.join(map(repr, list(value)[:5]))}; "
        "expected an array of rows, or one row per line",
        code="DAT001",
        place=name,
        hint=f"write the array under {lists[0]!r} to a separate file"
        if lists
        else "write each object on a line of its file: `jq -c . FILE > NEW.jsonl`",
    )


def _undecodable(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8 "
            "(if a Western Windows program wrote it, `iconv -f CP1252 -t UTF-8` converts it)"
        )
    if isinstance(error, RecursionError):
        return "lists or objects that are nested too deeply"
    return "a number with too many digits"


def _parquet(path: Path, name: str) -> RawFile:
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:
        raise DataError(
            f"can't read the Parquet file: {last_line(error)}", code="DAT001", place=name
        ) from None
    return from_dataset(rows, name)


def _csv(path: Path, name: str) -> RawFile:
    csv.field_size_limit(sys.maxsize)
    rows: list[Raw] = []
    try:
        # strict: otherwise a quote that never closes silently swallows the rest of the file.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for cells in reader:
                if cells:
                    rows.append(_cells(header, cells, f"{name}: row {len(rows) + 1}"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"found {_undecodable(error)}; expected UTF-8", code="DAT001", place=name
        ) from None
    except csv.Error as error:
        raise DataError(
            f"not CSV: {error}",
            code="DAT001",
            place=f"{name}: row {len(rows) + 1}",
            hint='quote text that contains commas, quotes or line ends ("..."), and double the '
            "quotes inside",
        ) from None
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(
            f"the header has the column {repeated[0]!r} twice",
            code="DAT001",
            place=name,
            hint="rename or remove one of them",
        )
    return RawFile(name, rows, header, range(1, len(rows) + 1))


def _cells(header: list[str], cells: list[str], place: str) -> Raw:
    if len(cells) != len(header):
        raise DataError(
            f"found {len(cells)} cells; expected {len(header)}, as in the header "
            f"({', '.join(header)})",
            code="DAT001",
            place=place,
            hint='quote text that contains commas ("...")',
        )
    return dict(zip(header, cells, strict=True))
