"""One source of a recipe becomes raw rows, each with its file and its number there."""

from __future__ import annotations

import difflib
import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    ReadInstruction,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from prefcli.data.readers import Part, last_line, part_of, read_file
from prefcli.errors import DataError, Problem, RecipeError, UnreachableError
from prefcli.formats import Raw, RowError
from prefcli.hub.cache import offline, snapshot
from prefcli.recipe.paths import SUFFIXES, is_local
from prefcli.recipe.sections import Source


@dataclass(frozen=True)
class RawRows:
    """The rows of a source, with columns renamed."""

    parts: list[Part]
    renamed: dict[str, str]
    """Our column name: the name it has in the data."""
    taken: Sequence[int]
    """Indices over all parts."""

    def __len__(self) -> int:
        return len(self.taken)

    @cached_property
    def column_names(self) -> list[str]:
        found = dict.fromkeys(name for part in self.parts for name in part.columns)
        return list(self._rename(found))

    def place(self, index: int) -> tuple[str, int]:
        """File and number of a row."""
        part, at = self._find(index)
        return part.file, part.numbers[at]

    def row(self, index: int) -> Raw:
        """All columns, those the row lacks as null. Raises RowError where it can't be read."""
        part, at = self._find(index)
        return {**dict.fromkeys(self.column_names), **self._rename(part.rows[at])}

    def __getitem__(self, column: str) -> list[Any]:
        """All values of a column. Raises DataError where a row can't be read."""
        values = []
        for index in range(len(self)):
            try:
                values.append(self.row(index)[column])
            except RowError as error:
                file, number = self.place(index)
                raise DataError(str(error), place=f"{file}: row {number}") from None
        return values

    def _find(self, index: int) -> tuple[Part, int]:
        at = self.taken[index]
        part = bisect_right(self._ends, at)
        return self.parts[part], at - (self._ends[part - 1] if part else 0)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part.rows) for part in self.parts))

    def _rename(self, row: Raw) -> Raw:
        if not self.renamed:
            return row
        touched = {*self.renamed, *self.renamed.values()}
        rest = {name: value for name, value in row.items() if name not in touched}
        return rest | {ours: row.get(theirs) for ours, theirs in self.renamed.items()}


def read(source: Source, where: str) -> RawRows:
    """All rows of the source, with columns renamed. `where` is its dotted path in the recipe."""
    split, cut = _split(source, where)
    parts = (
        _read_local(source, split, where)
        if is_local(source.path)
        else [part_of(_read_hub(source, split, where), source.path)]
    )
    count = sum(len(part.rows) for part in parts)
    if not count:
        raise DataError("no rows", place=source.path)
    rows = RawRows(parts, {}, _slice(source, split, cut, count, where))
    if not len(rows):
        raise RecipeError(
            Problem(f"{source.split} takes none of the {count} rows", path=f"{where}.split")
        )
    if rows.column_names:
        _check_columns(rows, source, where)
    return replace(rows, renamed=dict(source.columns))


def draw(rows: RawRows, fraction: float, seed: int, sample: int | None) -> tuple[list[int], int]:
    """Row indices in their order, a seeded draw of a share of them; and how many that share has.

    sample: draw no more than so many of them.
    """
    indices = _some(range(len(rows)), max(1, round(len(rows) * fraction)), seed)
    return (indices if sample is None else _some(indices, sample, seed)), len(indices)


def _some(indices: Sequence[int], count: int, seed: int) -> list[int]:
    if count >= len(indices):
        return list(indices)
    return sorted(random.Random(seed).sample(indices, count))


def _split(source: Source, where: str) -> tuple[str, str]:
    """The name of a split, and its slice, as in train and [:1000].

    The whole split is read and sliced here, so that rows keep their numbers.
    """
    match = re.fullmatch(r"([\w.-]+)(\[.*\])?", source.split or "train")
    try:
        if match is not None:
            ReadInstruction.from_spec(match[0])
            return match[1], match[2] or ""
    except ValueError:
        pass
    raise RecipeError(
        Problem(
            f"{source.split!r} is no split",
            path=f"{where}.split",
            hint="write a name, or a slice of it as in train[:1000] or train[90%:]; "
            "to join splits, list them as sources",
        )
    )


def _slice(source: Source, split: str, cut: str, count: int, where: str) -> range:
    if not cut:
        return range(count)
    try:
        (part,) = ReadInstruction.from_spec(f"{split}{cut}").to_absolute({split: count})
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            Problem(f"{source.split}: {last_line(error)}", path=f"{where}.split")
        ) from None
    return range(part.from_ or 0, count if part.to is None else part.to)


def _read_local(source: Source, split: str, where: str) -> list[Part]:
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
        return _read_folder(path, source, split, where)
    if path.suffix.lower() not in SUFFIXES:
        raise RecipeError(
            Problem(
                f"{path.suffix or 'a file without suffix'} is no data format prefcli reads",
                path=f"{where}.path",
                hint=f"convert it to one of {', '.join(SUFFIXES)}",
            )
        )
    _no_effect(source, where, "a single file", "name", "data_files", "revision")
    if split != "train":
        raise RecipeError(
            Problem(
                f"a single file has no split {split!r}",
                path=f"{where}.split",
                hint="leave split out, or slice with train[:1000]",
            )
        )
    return [read_file(path, source.path, _label(source))]


def _read_folder(path: Path, source: Source, split: str, where: str) -> list[Part]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        _no_effect(source, where, "a saved dataset", "name", "data_files", "revision")
        try:
            saved = load_from_disk(str(path))
        except Exception as error:
            raise DataError(
                f"the saved dataset can't be read: {last_line(error)}", place=source.path
            ) from None
        splits = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        return [part_of(_one_of(splits, split, source, where), source.path)]
    _no_effect(source, where, "a folder", "revision")
    try:
        builder = load_dataset_builder(str(path), name=source.name, data_files=source.data_files)
    except FileNotFoundError as error:
        raise _no_files(path, source, where, error) from None
    except Exception as error:
        raise RecipeError(Problem(f"{source.path}: {last_line(error)}", path=where)) from None
    files = _one_of(builder.config.data_files or {}, split, source, where)
    paths = [Path(file).resolve() for file in files]
    if all(file.suffix.lower() in SUFFIXES and file.exists() for file in paths):
        return [
            read_file(file, _shown(file, path.resolve(), source), _label(source)) for file in paths
        ]
    options = {"name": source.name, "data_files": source.data_files}
    return [part_of(_load(str(path), source, where, split=split, **options), source.path)]


def _read_hub(source: Source, split: str, where: str) -> Dataset:
    options = {"name": source.name, "data_files": source.data_files, "split": split}
    if not offline():
        return _load(source.path, source, where, revision=source.revision, **options)
    # Of datasets' own cache nobody can say which revision it holds: it takes the latest.
    folder = snapshot(source.path, "dataset", source.revision)
    if folder is not None:
        try:
            return load_dataset(str(folder), **options)
        except FileNotFoundError:
            raise _unreachable(source, where, "only a part of it is in the cache") from None
        except Exception as error:
            raise RecipeError(Problem(f"{source.path}: {last_line(error)}", path=where)) from None
    if source.revision is not None:
        raise _unreachable(source, where, "the cache lacks that revision")
    return _load(source.path, source, where, **options)


def _load(reader: str, source: Source, where: str, **options: Any) -> Dataset:
    try:
        return load_dataset(reader, **options)
    except DatasetNotFoundError as error:
        raise RecipeError(
            Problem(
                f"neither a file here nor a dataset on the hub: {source.path}",
                path=f"{where}.path",
                hint=_nearest_file(Path(source.path)) or last_line(error),
            )
        ) from None
    except DatasetGenerationError as error:
        raise DataError(f"can't be read: {last_line(error)}", place=source.path) from None
    except ConnectionError:
        raise _unreachable(source, where, "the cache lacks it") from None
    # Whatever a library says about a dataset the user named is the user's to put right.
    except Exception as error:
        raise RecipeError(Problem(f"{source.path}: {last_line(error)}", path=where)) from None


def _unreachable(source: Source, where: str, why: str) -> UnreachableError:
    at = f" at {source.revision}" if source.revision is not None else ""
    return UnreachableError(
        Problem(
            f"the hub can't be asked for {source.path}{at}, and {why}",
            path=f"{where}.path",
            hint=_nearest_file(Path(source.path))
            or "`prefcli download RECIPE` fills the cache where there is a network; or point "
            "path at a local copy",
        )
    )


def _shown(file: Path, folder: Path, source: Source) -> str:
    """A file of a folder, starting as the user wrote the folder."""
    inside = folder in file.parents
    return str(Path(source.path) / file.relative_to(folder) if inside else file)


def _label(source: Source) -> str:
    return source.columns.get("label", "label")


def _no_effect(source: Source, where: str, container: str, *keys: str) -> None:
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(
                Problem(
                    f"{key} has no effect on {container}",
                    path=f"{where}.{key}",
                    hint="leave it out",
                )
            )


def _one_of(splits: dict[str, Any], split: str, source: Source, where: str) -> Any:
    names = {str(name): value for name, value in splits.items()}
    if split not in names:
        raise RecipeError(
            Problem(
                f"no split {split!r} in {source.path}; it has {', '.join(names)}",
                path=f"{where}.split",
                hint=_nearest(split, list(names)) or f"write split: {next(iter(names), 'train')}",
            )
        )
    return names[split]


def _no_files(path: Path, source: Source, where: str, error: Exception) -> RecipeError:
    if source.data_files is None:
        return RecipeError(
            Problem(
                f"{source.path} holds no data files",
                path=f"{where}.path",
                hint=f"files end with one of {', '.join(SUFFIXES)}",
            )
        )
    wanted = source.data_files if isinstance(source.data_files, str) else source.data_files[0]
    names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    return RecipeError(
        Problem(
            f"no such files in {source.path}: {source.data_files}",
            path=f"{where}.data_files",
            hint=_nearest(wanted, names) or f"it holds {', '.join(names[:10]) or 'no files'}",
        )
    )


def _check_columns(rows: RawRows, source: Source, where: str) -> None:
    names = rows.column_names
    problems = [
        Problem(
            f"no column {theirs!r} in {source.path}; it has {', '.join(names)}",
            path=f"{where}.columns.{ours}",
            hint=_nearest(theirs, names),
        )
        for ours, theirs in source.columns.items()
        if theirs not in names
    ]
    if problems:
        raise RecipeError(problems)


def _neighbours(path: Path) -> str | None:
    if not path.parent.is_dir():
        return (
            f"there is no folder {path.parent} either; paths are relative to where prefcli is run"
        )
    return _nearest_file(path)


def _nearest_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"did you mean {path.parent / close[0]}?" if close else None


def _nearest(name: str, names: list[str]) -> str | None:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else None
