"""Canonical rows in a memory-mapped file in datasets' cache, named after their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
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


_ROWS_A_BATCH = 1000


def digest(rows: Dataset) -> str:
    """Of the rows' content and order, whatever file, cache or index they are read through.

    Arrow's own bytes are others for the same rows, once they are taken through an index.
    """
    found = hashlib.blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(_ROWS_A_BATCH):
        for name in table.column_names:
            found.update(name.encode())
            for part in _plain(table[name].combine_chunks()):
                found.update(part)
    return found.hexdigest()


def _plain(values: pa.Array) -> Iterator[bytes | memoryview]:
    """What the values are made of: lengths, then contents, level by level; null has length -1."""
    if pa.types.is_struct(values.type):
        yield _numbers(values.is_valid())
        for part in values.flatten():
            yield from _plain(part)
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield _numbers(pc.list_value_length(values).fill_null(-1))
        yield from _plain(values.flatten())
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        yield _numbers(pc.binary_length(values).fill_null(-1))
        whole = values.fill_null("").cast(pa.large_string())
        _, offsets, text = whole.buffers()
        if text is not None:
            ends = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
            yield memoryview(text)[ends[0] : ends[-1]]
    elif pa.types.is_null(values.type):
        yield str(len(values)).encode()
    else:
        yield _numbers(values.is_valid())
        yield _numbers(values.drop_null())


def _numbers(values: pa.Array) -> bytes:
    found: bytes = values.to_numpy(zero_copy_only=False).tobytes()
    return found
