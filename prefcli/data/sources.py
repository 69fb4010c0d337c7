"""One source of a recipe becomes a datasets.Dataset of raw rows."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from prefcli.errors import DataError, Problem, RecipeError
from prefcli.recipe.schema import Source

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def is_local(path: str) -> bool:
    """A file or folder here, rather than a hub id."""
    return (
        path.startswith(("/", "./", "../", "~"))
        or Path(path).suffix in _READERS
        or Path(path).exists()
    )


def read(source: Source, where: str) -> Dataset:
    """All rows of the source, with columns renamed. `where` is its dotted path in the recipe."""
    rows = _read_local(source, where) if is_local(source.path) else _read_hub(source, where)
    if not len(rows):
        raise DataError("no rows", place=source.path)
    return _rename(rows, source, where)


def sample(rows: Dataset, fraction: float, seed: int) -> list[int]:
    """Row indices in their order: all of them, or a seeded draw of a share of them."""
    indices = list(range(len(rows)))
    if fraction == 1.0:
        return indices
    count = max(1, round(len(rows) * fraction))
    return sorted(random.Random(seed).sample(indices, count))


def _read_local(source: Source, where: str) -> Dataset:
    path = Path(source.path).expanduser()
    if not path.exists():
        raise RecipeError(
            Problem(
                f"no such file or folder: {source.path}",
                path=f"{where}.path",
                hint=_neighbours(path),
            )
        )
    if path.is_dir():
        return _read_folder(path, source, where)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise RecipeError(
            Problem(
                f"{path.suffix or 'a file without suffix'} is no data format prefcli reads",
                path=f"{where}.path",
                hint=f"convert it to one of {', '.join(_READERS)}",
            )
        )
    for key in ("name", "data_files", "revision"):
        if getattr(source, key) is not None:
            raise RecipeError(
                Problem(f"{key} has no effect on a single file", path=f"{where}.{key}")
            )
    if path.stat().st_size == 0:
        raise DataError("the file is empty", place=source.path)
    split = source.split or "train"
    if not split.startswith("train"):
        raise RecipeError(
            Problem(
                f"a single file has no split {split!r}",
                path=f"{where}.split",
                hint="leave split out, or slice with train[:1000]",
            )
        )
    return _load(reader, source, where, data_files=str(path), split=split)


def _read_folder(path: Path, source: Source, where: str) -> Dataset:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        try:
            saved = load_from_disk(str(path))
        except Exception as error:
            raise DataError(f"can't be read: {_last_line(error)}", place=source.path) from None
        if isinstance(saved, DatasetDict):
            split = source.split or "train"
            if split not in saved:
                raise RecipeError(
                    Problem(
                        f"no split {split!r}; the folder has {', '.join(saved)}",
                        path=f"{where}.split",
                    )
                )
            return saved[split]
        return saved
    return _load(
        str(path), source, where, data_files=source.data_files, split=source.split or "train"
    )


def _read_hub(source: Source, where: str) -> Dataset:
    return _load(
        source.path,
        source,
        where,
        name=source.name,
        data_files=source.data_files,
        revision=source.revision,
        split=source.split or "train",
    )


def _load(reader: str, source: Source, where: str, **options: Any) -> Dataset:
    try:
        return load_dataset(reader, **options)
    except DatasetNotFoundError as error:
        raise RecipeError(
            Problem(
                f"neither a file here nor a dataset on the hub: {source.path}",
                path=f"{where}.path",
                hint=_last_line(error),
            )
        ) from None
    except DatasetGenerationError as error:
        _blame_row(source)
        raise DataError(
            f"can't be read: {_last_line(error.__cause__ or error)}", place=source.path
        ) from None
    except ConnectionError as error:
        raise RecipeError(
            Problem(
                f"the hub can't be reached for {source.path}: {_last_line(error)}",
                path=f"{where}.path",
                hint="check the network, or point path at a local copy",
            )
        ) from None
    except (ValueError, FileNotFoundError, OSError, RuntimeError) as error:
        raise RecipeError(
            Problem(f"{source.path}: {_last_line(error)}", path=where)
        ) from None


def _blame_row(source: Source) -> None:
    """Find the row of a JSON file that stops pyarrow, and raise DataError about it."""
    path = Path(source.path).expanduser()
    if path.suffix not in (".jsonl", ".json") or not path.is_file():
        return
    types: dict[str, tuple[str, int]] = {}
    for number, row in _json_rows(path):
        place = f"{source.path}: row {number}"
        if not isinstance(row, dict):
            raise DataError(
                f"found {json.dumps(row)[:60]}; expected an object with columns", place=place
            )
        for column, value in row.items():
            kind = _kind(value)
            if kind == "null":
                continue
            first = types.setdefault(column, (kind, number))
            if first[0] != kind:
                raise DataError(
                    f"found {kind} in {column!r}; expected {first[0]}, as in row {first[1]}",
                    place=place,
                )


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON: {error.msg}", place=f"{path}:{error.lineno}") from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"not JSON: {error.msg} at column {error.colno}: found {line[:60]!r}; "
                "expected one JSON object a line",
                place=f"{path}: row {number}",
            ) from None
        yield number, row


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, (int, float)):
        return "a number"
    return {str: "text", list: "a list", dict: "an object"}[type(value)]


def _rename(rows: Dataset, source: Source, where: str) -> Dataset:
    for ours, theirs in source.columns.items():
        if theirs not in rows.column_names:
            close = difflib.get_close_matches(theirs, rows.column_names, n=1)
            raise RecipeError(
                Problem(
                    f"no column {theirs!r} in {source.path}; it has {', '.join(rows.column_names)}",
                    path=f"{where}.columns.{ours}",
                    hint=f"did you mean {close[0]}?" if close else None,
                )
            )
    replaced = set(source.columns) - set(source.columns.values())
    rows = rows.remove_columns([c for c in rows.column_names if c in replaced])
    return rows.rename_columns({theirs: ours for ours, theirs in source.columns.items()})


def _neighbours(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; paths are relative to where prefcli is run"
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f"did you mean {folder / close[0]}?" if close else None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
