"""Local sources: a data file, a folder of data files, or a folder of Dataset.save_to_disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset_builder, load_from_disk

from prefcli.data.hub_datasets import load_rows, nearest_file
from prefcli.data.readers import RawFile, from_dataset, read_file
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.recipe.paths import SUFFIXES
from prefcli.recipe.sections import Source
from prefcli.text import did_you_mean, last_line

_CURES = {
    ".gz": "unpack it with `gunzip`",
    ".zst": "unpack it with `unzstd`",
    ".xz": "unpack it with `unxz`",
    ".zip": "unpack it with `unzip`",
    ".tsv": "write it with commas, as .csv",
}
"""What to do about a file, by its suffix."""


def read_local(source: Source, split: str, where: str) -> list[RawFile]:
    """Read a local file or folder. Raises RecipeError and DataError."""
    path = Path(source.path).expanduser()
    if not path.exists():
        raise RecipeError(
            Problem(
                f"no such file or folder: {source.path}",
                path=f"{where}.path",
                hint=nearest_file(path)
                if path.parent.is_dir()
                else f"the folder {path.parent} does not exist either; paths are relative to the "
                "working directory",
                code="DAT003",
            )
        )
    if path.is_dir():
        return _read_folder(path, source, split, where)
    if path.suffix.lower() not in SUFFIXES:
        raise RecipeError(
            Problem(
                f"can't read {path.suffix or 'a file without a suffix'} files",
                path=f"{where}.path",
                hint=_CURES.get(path.suffix.lower(), f"convert it to one of {', '.join(SUFFIXES)}"),
                code="DAT004",
            )
        )
    _refuse_keys(source, where, "a single file", "name", "data_files", "revision")
    if split != "train":
        raise RecipeError(
            Problem(
                f"a single file has no split {split!r}",
                path=f"{where}.split",
                hint="remove split, or slice with train[:1000]",
                code="DAT005",
            )
        )
    return [read_file(path, source.path)]


def _read_folder(path: Path, source: Source, split: str, where: str) -> list[RawFile]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        _refuse_keys(source, where, "a saved dataset", "name", "data_files", "revision")
        try:
            saved = load_from_disk(str(path))
        except Exception as error:
            raise DataError(
                f"can't read the saved dataset: {last_line(error)}",
                code="DAT001",
                place=source.path,
            ) from None
        splits = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        return [from_dataset(_choose_split(splits, split, source, where), source.path)]
    _refuse_keys(source, where, "a folder", "revision")
    try:
        builder = load_dataset_builder(str(path), name=source.name, data_files=source.data_files)
    except FileNotFoundError:
        raise _no_files(path, source, where) from None
    except Exception as error:
        raise RecipeError(
            Problem(f"{source.path}: {last_line(error)}", path=where, code="DAT007")
        ) from None
    files = _choose_split(builder.config.data_files or {}, split, source, where)
    paths = [Path(file).resolve() for file in files]
    if all(file.suffix.lower() in SUFFIXES and file.exists() for file in paths):
        return [read_file(file, _as_written(file, path.resolve(), source)) for file in paths]
    options = {"name": source.name, "data_files": source.data_files}
    return [from_dataset(load_rows(str(path), source, where, split=split, **options), source.path)]


def _as_written(file: Path, folder: Path, source: Source) -> str:
    """Name a file of a folder, starting with the folder as the user wrote it."""
    inside = folder in file.parents
    return str(Path(source.path) / file.relative_to(folder) if inside else file)


def _refuse_keys(source: Source, where: str, container: str, *keys: str) -> None:
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(
                Problem(
                    f"{key} has no effect on {container}",
                    path=f"{where}.{key}",
                    hint="remove it",
                    code="DAT006",
                )
            )


def _choose_split(splits: dict[str, Any], split: str, source: Source, where: str) -> Any:
    by_name = {str(name): value for name, value in splits.items()}
    if split not in by_name:
        raise RecipeError(
            Problem(
                f"no split {split!r} in {source.path}; it has {', '.join(by_name)}",
                path=f"{where}.split",
                hint=did_you_mean(split, by_name) or f"write split: {next(iter(by_name), 'train')}",
                code="DAT005",
            )
        )
    return by_name[split]


def _no_files(path: Path, source: Source, where: str) -> RecipeError:
    if source.data_files is None:
        return RecipeError(
            Problem(
                f"{source.path} has no data files",
                path=f"{where}.path",
                hint=f"data files end with one of {', '.join(SUFFIXES)}",
                code="DAT003",
            )
        )
    pattern = source.data_files if isinstance(source.data_files, str) else source.data_files[0]
    names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    return RecipeError(
        Problem(
            f"no such files in {source.path}: {source.data_files}",
            path=f"{where}.data_files",
            hint=did_you_mean(pattern, names) or f"it has {', '.join(names[:10]) or 'no files'}",
            code="DAT003",
        )
    )
