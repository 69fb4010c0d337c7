"""Datasets that the datasets library reads: from the hub, from its cache, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from prefcli.errors import DataError, Problem, RecipeError, UnreachableError
from prefcli.hub.cache import offline, snapshot
from prefcli.recipe.sections import Source
from prefcli.text import closest, last_line


def read_hub(source: Source, split: str, where: str) -> Dataset:
    """Read a dataset of the hub; without a network, from the cache. Raises RecipeError."""
    options = {"name": source.name, "data_files": source.data_files, "split": split}
    if not offline():
        return load_rows(source.path, source, where, revision=source.revision, **options)
    # The cache of datasets does not record revisions, so prefer the snapshot of the hub's cache.
    folder = snapshot(source.path, "dataset", source.revision)
    if folder is not None:
        try:
            return load_dataset(str(folder), **options)
        except FileNotFoundError:
            raise _unreachable(source, where, "the cache has only a part of it") from None
        except Exception as error:
            raise _load_failed(source, where, error) from None
    if source.revision is not None:
        raise _unreachable(source, where, "the cache lacks that revision")
    return load_rows(source.path, source, where, **options)


def load_rows(reader: str, source: Source, where: str, **options: Any) -> Dataset:
    """Call load_dataset. Raises RecipeError, and DataError if the rows can't be parsed."""
    try:
        return load_dataset(reader, **options)
    except DatasetNotFoundError as error:
        raise RecipeError(
            Problem(
                f"neither a local file nor a dataset on the hub: {source.path}",
                path=f"{where}.path",
                hint=nearest_file(Path(source.path)) or last_line(error),
                code="DAT003",
            )
        ) from None
    except DatasetGenerationError as error:
        raise DataError(
            f"can't read the dataset: {last_line(error)}", code="DAT001", place=source.path
        ) from None
    except ConnectionError:
        raise _unreachable(source, where, "the cache lacks it") from None
    # The user named the dataset, so any other error is about that choice.
    except Exception as error:
        raise _load_failed(source, where, error) from None


def nearest_file(path: Path) -> str | None:
    """Suggest a file of the same folder with a similar name."""
    if not path.parent.is_dir():
        return None
    match = closest(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"did you mean {path.parent / match}?" if match is not None else None


def _load_failed(source: Source, where: str, error: Exception) -> RecipeError:
    return RecipeError(Problem(f"{source.path}: {last_line(error)}", path=where, code="DAT007"))


def _unreachable(source: Source, where: str, reason: str) -> UnreachableError:
    at = f" at {source.revision}" if source.revision is not None else ""
    return UnreachableError(
        Problem(
            f"the hub is unreachable for {source.path}{at}, and {reason}",
            path=f"{where}.path",
            hint=nearest_file(Path(source.path))
            or "run `prefcli download RECIPE` on a machine with a network, or set path to a local "
            "copy",
            code="DAT008",
        )
    )
