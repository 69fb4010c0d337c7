"""Canonical rows in a memory-mapped file in datasets' cache, named after their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, config
from datasets.table import InMemoryTable, MemoryMappedTable


def stored(table: pa.Table) -> Dataset:
    """The table as a Dataset that takes no memory.

    The same rows have the same fingerprint on every rank and in every run, so what trl prepares
    from them is cached beside them and shared. In memory where the cache can't be written.
    """
    folder = Path(config.HF_DATASETS_CACHE) / "prefcli"
    draft = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=folder, suffix=".draft")
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        with open(draft, "rb") as written:
            digest = hashlib.file_digest(written, "blake2b").hexdigest()[:32]
        path = folder / f"{digest}.arrow"
        os.replace(draft, path)
    except OSError:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
        return Dataset(InMemoryTable(table))
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=digest)
