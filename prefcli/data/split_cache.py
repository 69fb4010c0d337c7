"""Splits on disk: what was read, converted and counted once, for other processes and later runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from prefcli.data.arrow_cache import folder, opened, write
from prefcli.data.findings import Finding, Tally
from prefcli.data.lengths import Lengths
from prefcli.data.split import Split

_BATCH = 1000


def save_splits(splits: Mapping[str, Split], path: Path) -> None:
    """Figures beside `path`, which is written last, and the rows among datasets' files.

    Raises OSError where the folder can't be written.
    """
    told, arrays = {}, {}
    for key, split in splits.items():
        rows = split.rows.with_format("arrow")
        file = write(split.rows.features.arrow_schema, rows.iter(_BATCH))
        told[key] = {
            "rows": file.name,
            "bytes": file.stat().st_size,
            "name": split.name,
            "read": split.read,
            "available": split.available,
            "dropped": {why: asdict(tally) for why, tally in split.dropped.items()},
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
        with draft.open("wb") as file_of_arrays:
            np.savez(file_of_arrays, allow_pickle=False, **arrays)
        os.replace(draft, path.with_suffix(".npz"))
        draft.write_text(json.dumps(told), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_splits(path: Path) -> dict[str, Split] | None:
    """What `keep_splits` has left there; None where that is nothing, or not whole any more."""
    try:
        told = json.loads(path.read_text("utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {key: _split(key, split, arrays) for key, split in told.items()}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _split(key: str, told: dict[str, Any], arrays: Mapping[str, Any]) -> Split:
    rows = folder() / told["rows"]
    if rows.stat().st_size != told["bytes"]:
        raise ValueError(f"{rows} is not whole")
    sides = f"{key}/lengths/"
    return Split(
        name=told["name"],
        rows=opened(rows),
        read=told["read"],
        available=told["available"],
        dropped={why: Tally(**tally) for why, tally in told["dropped"].items()},
        findings=[Finding(**finding) for finding in told["findings"]],
        notes=told["notes"],
        tokens=told["tokens"],
        lengths=Lengths(
            {
                n.removeprefix(sides): lengths
                for n, lengths in arrays.items()
                if n.startswith(sides)
            },
            told["max_length"],
            told["margin"],
        ),
        prompts=arrays[f"{key}/prompts"],
    )
