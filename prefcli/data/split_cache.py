"""Splits on disk: read, converted and audited once, for other processes and later runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from prefcli.data.arrow_cache import cache_folder, open_rows, write_tables
from prefcli.data.findings import Finding, Tally
from prefcli.data.lengths import Lengths
from prefcli.data.run_once import run_once
from prefcli.data.split import Split

_BATCH = 1000

Splits = dict[str, Split]
"""train, eval and sft_mix, those that the run has."""


def cached_splits(key: str | None, make: Callable[[], Splits]) -> tuple[Splits, Path | None, bool]:
    """Return (the splits, their path in the cache, whether they were there before this call).

    make: reads and audits the splits. Raises what it raises. The path is None without a key, and if
    the cache is not writable.
    """
    if key is None:
        return make(), None, False
    path = cache_folder() / "prepared" / f"{key}.json"
    was_cached = True

    def make_and_save() -> Splits:
        nonlocal was_cached
        was_cached = False
        splits = make()
        try:
            save_splits(splits, path)
        except OSError:
            return splits
        saved = load_splits(path)
        assert saved is not None, f"{path} can't be read back"
        return saved

    splits = run_once(path, "data", lambda: load_splits(path), make_and_save)
    return splits, path if path.exists() else None, was_cached


def save_splits(splits: Mapping[str, Split], path: Path) -> None:
    """Write the rows, then the arrays, then `path`, whose presence marks the entry as complete.

    Raises OSError if the folder is not writable.
    """
    entries, arrays = {}, {}
    for key, split in splits.items():
        rows = split.rows.with_format("arrow")
        file = write_tables(split.rows.features.arrow_schema, rows.iter(_BATCH))
        entries[key] = {
            "rows": file.name,
            "bytes": file.stat().st_size,
            "name": split.name,
            "read": split.read,
            "available": split.available,
            "dropped": {reason: asdict(tally) for reason, tally in split.dropped.items()},
            "findings": [asdict(finding) for finding in split.findings],
            "notes": split.notes,
            "tokens": split.tokens,
            "max_length": split.lengths.max_length,
            "margin": split.lengths.margin,
        }
        arrays[f"{key}/prompts"] = split.prompts
        arrays |= {f"{key}/lengths/{side}": n for side, n in split.lengths.tokens.items()}
    draft = path.with_suffix(f".{os.getpid()}.draft")
    try:
        with draft.open("wb") as array_file:
            np.savez(array_file, allow_pickle=False, **arrays)
        os.replace(draft, path.with_suffix(".npz"))
        draft.write_text(json.dumps(entries), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_splits(path: Path) -> Splits | None:
    """Load what `save_splits` wrote; None if there is nothing or it is damaged."""
    try:
        entries = json.loads(path.read_text("utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {key: _split(key, entry, arrays) for key, entry in entries.items()}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _split(key: str, entry: dict[str, Any], arrays: Mapping[str, Any]) -> Split:
    rows = cache_folder() / entry["rows"]
    if rows.stat().st_size != entry["bytes"]:
        raise ValueError(f"{rows} is damaged")
    prefix = f"{key}/lengths/"
    lengths = {
        name.removeprefix(prefix): tokens
        for name, tokens in arrays.items()
        if name.startswith(prefix)
    }
    return Split(
        name=entry["name"],
        rows=open_rows(rows),
        read=entry["read"],
        available=entry["available"],
        dropped={reason: Tally(**tally) for reason, tally in entry["dropped"].items()},
        findings=[Finding(**finding) for finding in entry["findings"]],
        notes=entry["notes"],
        tokens=entry["tokens"],
        lengths=Lengths(lengths, entry["max_length"], entry["margin"]),
        prompts=arrays[f"{key}/prompts"],
    )
