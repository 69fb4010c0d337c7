"""Rows written as JSON lines or Parquet, one block at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from prefcli.errors import DataError
from prefcli.text import first_line

Rows = Callable[[], Iterator[dict[str, Any]]]
"""Yields all rows, each time it is called."""

SUFFIXES = (".jsonl", ".parquet")
_BLOCK = 1000


def row_writer(suffix: str) -> Callable[[Path, Rows], None]:
    """Return the function that writes files of a suffix."""
    return _WRITERS[suffix.lower()]


def _write_jsonl(path: Path, rows: Rows) -> None:
    # A lone surrogate becomes its escape in JSON.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_parquet(path: Path, rows: Rows) -> None:
    """Write a table with the types of all rows. Raises DataError if they have no common types."""
    try:
        schema = pa.schema([])
        for block in _blocks(rows()):
            types = pa.Table.from_pylist(block).schema
            schema = pa.unify_schemas([schema, types], promote_options="permissive")
        with pq.ParquetWriter(path, schema) as writer:
            for block in _blocks(rows()):
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
    except pa.ArrowException as error:
        raise DataError(
            f"the rows don't fit into one Parquet table: {first_line(error)}",
            code="DAT031",
            hint="name a .jsonl file, whose rows may differ in their types",
        ) from None


def _blocks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while block := list(islice(rows, _BLOCK)):
        yield block


_WRITERS: Mapping[str, Callable[[Path, Rows], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
