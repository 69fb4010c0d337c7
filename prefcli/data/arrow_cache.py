"""Canonical rows in memory-mapped files in the cache of datasets, named after their content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, config
from datasets.table import InMemoryTable, MemoryMappedTable

from prefcli.data.digests import file_digest


def cache_folder() -> Path:
    """Return the folder that holds prefcli's prepared rows and their statistics."""
    return Path(config.HF_DATASETS_CACHE) / "prefcli"


def store_table(table: pa.Table) -> Dataset:
    """Write a table to the cache and open it as a memory-mapped Dataset.

    The same rows have the same fingerprint on every rank and in every run, so what trl prepares
    from them is cached and shared as well. If the cache is not writable, the rows stay in memory.
    """
    try:
        return open_rows(write_tables(table.schema, [table]))
    except OSError:
        return Dataset(InMemoryTable(table))


def write_tables(schema: pa.Schema, tables: Iterable[pa.Table]) -> Path:
    """Write tables to one file, one after the other, and return its path. Raises OSError."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=cache_folder(), suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
        path = cache_folder() / f"{file_digest(Path(draft))[:32]}.arrow"
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return path


def open_rows(path: Path) -> Dataset:
    """Open a file of `write_tables`; its name is the fingerprint of the rows."""
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem)
