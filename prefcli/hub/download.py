"""Downloads of what a recipe uses from the hub, so that a run needs no network."""

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
from prefcli.hub.cache import ADAPTER, ADAPTER_WEIGHTS, WEIGHTS, Kind, offline, snapshot
from prefcli.hub.commits import Repository, base_of
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source
from prefcli.text import first_line, format_bytes

_CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
"""Configuration and tokenizer, in the root folder."""
_CHAT_TEMPLATES = "additional_chat_templates/*"
_PICKLE_INDEX = ".bin.index.json"
_SHARDS = ("model-*-of-*.safetensors", "model.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth")
_CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
_DATA_FILES = ("*.parquet", "*.json*", "*.csv", "*.arrow", "*.txt", "*.gz", "*.zst", "*.zip")


@dataclass
class Downloaded:
    """A repository in the cache, or a local file or folder."""

    path: str
    """Dotted path in the recipe."""
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
        files = f"{len(self.files)} files, {format_bytes(self.bytes)}"
        return f"{self.path}: {self.kind} {self.name}@{self.commit}: {files}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def download_recipes(recipes: Sequence[Recipe]) -> Iterator[Downloaded]:
    """Yield each repository once it is downloaded. Raises RecipeError at the end for all failures.

    A dataset has then been opened from the cache, like in an offline run.
    """
    if offline():
        raise RecipeError(
            "prefcli download needs the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
            code="ENV040",
            hint="unset it, on a machine with a network",
        )
    problems: list[Problem] = []
    tasks: dict[object, Callable[[], Iterator[Downloaded]]] = {}
    for recipe in recipes:
        for key, task in _tasks(recipe):
            tasks.setdefault(key, task)
    for task in tasks.values():
        try:
            yield from task()
        except PrefcliError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)


def total(downloads: Sequence[Downloaded]) -> str:
    """Describe the number and size of all files, and where they are."""
    files, size = sum(len(d.files) for d in downloads), sum(d.bytes for d in downloads)
    return f"{files} files, {format_bytes(size)}, in {constants.HF_HUB_CACHE}"


def _tasks(recipe: Recipe) -> Iterator[tuple[object, Callable[[], Iterator[Downloaded]]]]:
    """Yield a function for each download, with a key that is equal for the same download."""
    model, reference = recipe.model, recipe.reference
    models = [("model.name_or_path", model.name_or_path, model.revision, model.init != "random")]
    if model.tokenizer is not None:
        models.append(("model.tokenizer", model.tokenizer, model.tokenizer_revision, False))
    if reference.name_or_path is not None:
        models.append(("reference.name_or_path", reference.name_or_path, reference.revision, True))
    judges = recipe.judge_models.items()
    models += [(path, name, revision, True) for path, (name, revision) in judges]
    for path, name, revision, weights in models:
        key: tuple[object, ...] = (name, revision, weights, model.trust_remote_code)
        repository = Repository(path, "model", name, revision)
        yield key, partial(_models, repository, weights=weights, code=model.trust_remote_code)
    for path, source in recipe.sources:
        key = (source.path, source.revision, source.name, str(source.data_files))
        yield key, partial(_dataset, source, f"{path}.path")


def _models(model: Repository, *, weights: bool, code: bool) -> Iterator[Downloaded]:
    """Yield a model and, if it is an adapter, its base."""
    repository: Repository | None = model
    while repository is not None:
        yield _local(repository) or _model(repository, weights=weights, code=code)
        repository = base_of(repository)


def _model(repository: Repository, *, weights: bool, code: bool) -> Downloaded:
    with _hub_errors(repository):
        info = HfApi().model_info(repository.name, revision=repository.revision)
        names = [file.rfilename for file in info.siblings or []]
        # Subfolders contain other formats or earlier states of the same model.
        in_root = [name for name in names if "/" not in name and not name.endswith(_PICKLE_INDEX)]
        files = _matching(in_root, [*_CONFIG_FILES, "*.py"] if code else _CONFIG_FILES)
        files += _matching(names, [_CHAT_TEMPLATES])
        if weights:
            files += _weights(in_root, repository)
        return _download(repository, files)


def _weights(names: list[str], repository: Repository) -> list[str]:
    single = ADAPTER_WEIGHTS if ADAPTER in names else WEIGHTS
    if single in names:
        return [single]
    shards = [] if ADAPTER in names else _matching(names, _SHARDS)
    if any(name.endswith(".safetensors") for name in shards):
        return shards
    reason = ", only pickled weights, which can run code" if _matching(names, _PICKLES) else ""
    raise RecipeError(
        Problem(
            f"{repository.name} has no {single}{reason}",
            path=repository.path,
            code="ENV045",
            hint="convert it with save_pretrained on a machine without secrets, or use another "
            "model",
        )
    )


def _dataset(source: Source, path: str) -> Iterator[Downloaded]:
    repository = Repository(path, "dataset", source.path, source.revision)
    if (local := _local(repository)) is not None:
        yield local
        return
    options: dict[str, Any] = {"name": source.name, "data_files": source.data_files}
    with _hub_errors(repository):
        # The builder knows the files of the configuration, and prepares all of its splits.
        builder = load_dataset_builder(source.path, revision=source.revision, **options)
        urls = [url for split in (builder.config.data_files or {}).values() for url in split]
        files = [url.partition("@")[2].partition("/")[2] for url in urls if url.startswith("hf://")]
        downloaded = _download(repository, [*_CARDS, *files])
        folder = snapshot(repository.name, "dataset", repository.revision)
        try:
            load_dataset_builder(str(folder), **options)
        except FileNotFoundError:
            # datasets infers the format from the files of the first configuration, too.
            downloaded = _download(repository, [*_CARDS, *_DATA_FILES])
        yield downloaded


def _download(repository: Repository, patterns: list[str]) -> Downloaded:
    path, kind, name, revision = repository
    folder = Path(
        snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
    )
    cached = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    files = _matching(cached, patterns)
    size = sum((folder / file).stat().st_size for file in files)
    return Downloaded(path, kind, name, revision, folder.name, files, size)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _local(repository: Repository) -> Downloaded | None:
    """Return a local file or folder; None for a hub id. Raises RecipeError if it is missing."""
    if not is_local(repository.name):
        return None
    if not Path(repository.name).expanduser().exists():
        raise RecipeError(
            Problem(
                f"no such file or folder: {repository.name}",
                path=repository.path,
                code="ENV046",
                hint="correct the path; if another run writes it, download that run's recipe",
            )
        )
    path, kind, name, revision = repository
    return Downloaded(path, kind, name, revision, local=True)


@contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    """Turn any error of the libraries into one problem of the recipe."""
    try:
        yield
    except PrefcliError:
        raise
    except Exception as error:
        raise RecipeError(_problem(error, repository)) from None


def _problem(error: Exception, repository: Repository) -> Problem:
    path, kind, name, revision = repository
    start = f"the {kind} {name}"
    if isinstance(error, GatedRepoError) or "is a gated" in str(error):
        return Problem(
            f"{start} is gated",
            path=path,
            code="ENV042",
            hint="log in with `hf auth login`, and accept its terms on the hub",
        )
    if any(isinstance(e, RevisionNotFoundError) for e in (error, error.__cause__)):
        return Problem(
            f"{start} has no revision {revision}",
            path=path,
            code="ENV044",
            hint="write one of its branches, tags or commits",
        )
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        return Problem(
            f"{start} is not on the hub, or this account has no access",
            path=path,
            code="ENV043",
            hint="correct the name; for a private repository, log in with `hf auth login`",
        )
    return Problem(
        f"{start} can't be downloaded: {first_line(error)}",
        path=path,
        code="ENV041",
        hint=f"check that {constants.ENDPOINT} is reachable, then rerun: finished files are kept",
    )
