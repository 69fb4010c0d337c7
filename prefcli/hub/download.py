"""Bring what a recipe takes from the hub into the cache, so that a run needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from prefcli.errors import PrefcliError, Problem, RecipeError
from prefcli.hub.cache import ADAPTER, ADAPTER_WEIGHTS, Kind, offline, snapshot
from prefcli.hub.commits import Wanted, base_of
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source

_ABOUT = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "additional_chat_templates/*")
"""Configuration and tokenizer."""
_OF_PICKLES = "*.bin.index.json"
_WEIGHTS = "model.safetensors"
_SHARDS = ("model-*-of-*.safetensors", "model.safetensors.index.json")
_CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
_DATA = ("*.parquet", "*.json*", "*.csv", "*.arrow", "*.txt", "*.gz", "*.zst", "*.zip")


@dataclass
class Downloaded:
    """One repository, or a file or folder that is here anyway."""

    path: str
    """Dotted, in the recipe."""
    kind: Kind
    name: str
    revision: str | None
    commit: str | None = None
    files: list[str] = field(default_factory=list)
    bytes: int = 0
    local: bool = False

    def __str__(self) -> str:
        if self.local:
            return f"{self.path}: {self.name} is local"
        files = f"{len(self.files)} files, {_size(self.bytes)}"
        return f"{self.path}: {self.kind} {self.name}@{self.commit}: {files}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fetch(recipes: Sequence[Recipe]) -> Iterator[Downloaded]:
    """Each repository once, told as soon as it is here. Raises RecipeError, last, for what failed.

    A dataset has then been opened from the cache alone, as an offline run opens it.
    """
    if offline():
        raise RecipeError(
            "fetch asks the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
            hint="unset it, on a machine with a network",
        )
    problems: list[Problem] = []
    wanted: dict[object, Callable[[], Iterator[Downloaded]]] = {}
    for recipe in recipes:
        for key, take in _wanted(recipe):
            wanted.setdefault(key, take)
    for take in wanted.values():
        try:
            yield from take()
        except PrefcliError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)


def total(taken: Sequence[Downloaded]) -> str:
    files, size = sum(len(each.files) for each in taken), sum(each.bytes for each in taken)
    return f"{files} files, {_size(size)}, in {constants.HF_HUB_CACHE}"


def _wanted(recipe: Recipe) -> Iterator[tuple[object, Callable[[], Iterator[Downloaded]]]]:
    """What a recipe names, by what it comes to, with the way to take it."""
    model, other = recipe.model, recipe.reference
    named = [("model", model.name_or_path, model.revision, model.init != "random")]
    if other.name_or_path is not None:
        named.append(("reference", other.name_or_path, other.revision, True))
    for section, name, revision, weights in named:
        key: tuple[object, ...] = (name, revision, weights, model.trust_remote_code)
        first = Wanted(f"{section}.name_or_path", "model", name, revision)
        yield key, partial(_models, first, weights=weights, code=model.trust_remote_code)
    for where, source in recipe.sources:
        key = (source.path, source.revision, source.name, str(source.data_files))
        yield key, partial(_dataset, source, f"{where}.path")


def _models(first: Wanted, *, weights: bool, code: bool) -> Iterator[Downloaded]:
    """The model, and under an adapter what it lies on."""
    link: Wanted | None = first
    while link is not None:
        taken = _here(link) or _model(link, weights=weights, code=code)
        yield taken
        link = base_of(link)


def _model(wanted: Wanted, *, weights: bool, code: bool) -> Downloaded:
    with _asking(wanted):
        info = HfApi().model_info(wanted.name, revision=wanted.revision)
        there = [each.rfilename for each in info.siblings or []]
        files = [f for f in there if _about(f) or (code and f.endswith(".py"))]
        if weights:
            files += _weights(there, wanted)
        return _download(wanted, files)


def _about(file: str) -> bool:
    """Subfolders hold other formats, or earlier states, of the same model."""
    deep = "/" in file and not file.startswith("additional_chat_templates/")
    return not deep and not fnmatch(file, _OF_PICKLES) and _matches(file, _ABOUT)


def _weights(there: list[str], wanted: Wanted) -> list[str]:
    alone = ADAPTER_WEIGHTS if ADAPTER in there else _WEIGHTS
    found = [alone] if alone in there else []
    if not found and ADAPTER not in there:
        found = [file for file in there if "/" not in file and _matches(file, _SHARDS)]
    if any(file.endswith(".safetensors") for file in found):
        return found
    pickled = any(file.endswith((".bin", ".pt", ".pth")) for file in there)
    raise RecipeError(
        Problem(
            f"{wanted.name} holds no {alone}"
            + (", only pickled weights, which can run code" if pickled else ""),
            path=wanted.path,
            hint="convert them with save_pretrained, on a machine you can spare, or name another "
            "model",
        )
    )


def _dataset(source: Source, path: str) -> Iterator[Downloaded]:
    wanted = Wanted(path, "dataset", source.path, source.revision)
    if (local := _here(wanted)) is not None:
        yield local
        return
    how: dict[str, Any] = {"name": source.name, "data_files": source.data_files}
    with _asking(wanted):
        # It knows which files the configuration is made of; all its splits are prepared at once.
        builder = load_dataset_builder(source.path, revision=source.revision, **how)
        urls = [url for split in (builder.config.data_files or {}).values() for url in split]
        files = [url.partition("@")[2].partition("/")[2] for url in urls if url.startswith("hf://")]
        taken = _download(wanted, [*_CARDS, *files])
        try:
            load_dataset_builder(str(snapshot(wanted.name, "dataset", wanted.revision)), **how)
        except FileNotFoundError:
            # To tell the format, datasets looks for files of the first configuration, too.
            taken = _download(wanted, [*_CARDS, *_DATA])
        yield taken


def _download(wanted: Wanted, files: list[str]) -> Downloaded:
    folder = Path(
        snapshot_download(
            wanted.name, repo_type=wanted.kind, revision=wanted.revision, allow_patterns=files
        )
    )
    here = [each for each in sorted(folder.rglob("*")) if each.is_file()]
    found = {str(each.relative_to(folder)): each.stat().st_size for each in here}
    mine = {file: size for file, size in found.items() if _matches(file, files)}
    return Downloaded(
        wanted.path,
        wanted.kind,
        wanted.name,
        wanted.revision,
        folder.name,
        list(mine),
        sum(mine.values()),
    )


def _here(wanted: Wanted) -> Downloaded | None:
    """A local path, which is there; None for a hub id."""
    if not is_local(wanted.name):
        return None
    if not Path(wanted.name).expanduser().exists():
        raise RecipeError(
            Problem(
                f"no such file or folder: {wanted.name}",
                path=wanted.path,
                hint="if an earlier stage writes it, fetch that stage's recipe; else correct it",
            )
        )
    return Downloaded(wanted.path, wanted.kind, wanted.name, wanted.revision, local=True)


@contextmanager
def _asking(wanted: Wanted) -> Iterator[None]:
    """Whatever the libraries say about a repository that the user named, as one problem."""
    try:
        yield
    except PrefcliError:
        raise
    except Exception as error:
        what, cure = _in_words(error)
        raise RecipeError(
            Problem(
                f"the {wanted.kind} {wanted.name} can't be fetched: {what}",
                path=wanted.path,
                hint=cure,
            )
        ) from None


def _in_words(error: Exception) -> tuple[str, str]:
    """What it is, and what to do."""
    if isinstance(error, GatedRepoError) or "is a gated" in str(error):
        return "it is gated", "log in with `hf auth login`, and accept its terms on the hub"
    if isinstance(error, RevisionNotFoundError) or isinstance(
        error.__cause__, RevisionNotFoundError
    ):
        return "it has no such revision", "name a branch, a tag or a commit that it has"
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        return (
            "the hub has none of that name, or not for you",
            "correct the name; for a private repository, log in with `hf auth login`",
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cure = f"does {constants.ENDPOINT} answer from here? What came by now stays in the cache"
    return lines[0].strip()[:300], cure


def _matches(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
