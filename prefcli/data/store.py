"""Canonical rows in a memory-mapped file in datasets' cache, named after their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, config
from datasets.table import InMemoryTable, MemoryMappedTable


def folder() -> Path:
    """Where prefcli keeps rows, and what it found out about them."""
    return Path(config.HF_DATASETS_CACHE) / "prefcli"


def stored(table: pa.Table) -> Dataset:
    """The table as a Dataset that takes no memory.

    The same rows have the same fingerprint on every rank and in every run, so what trl prepares
    from them is cached beside them and shared. In memory where the cache can't be written.
    """
    try:
        return opened(write(table.schema, [table]))
    except OSError:
        return Dataset(InMemoryTable(table))


def write(schema: pa.Schema, tables: Iterable[pa.Table]) -> Path:
    """The file that holds the tables, one after the other. Raises OSError."""
    folder().mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=folder(), suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
        with open(draft, "rb") as written:
            digest = hashlib.file_digest(written, "blake2b").hexdigest()[:32]
        path = folder() / f"{digest}.arrow"
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return path


def opened(path: Path) -> Dataset:
    """A file of `write`, whose name is the rows' fingerprint."""
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem)
