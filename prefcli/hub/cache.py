"""The hub's cache: the files and commits of a repository, without asking the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name

from prefcli.recipe.paths import is_commit

Kind = Literal["model", "dataset"]

TOKENIZER = "tokenizer.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
_TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json")
WEIGHTS_INDEX = "model.safetensors.index.json"


def offline() -> bool:
    """Return whether the hub must not be asked."""
    return bool(constants.HF_HUB_OFFLINE)


def commit_of(name: str, kind: Kind, revision: str | None) -> str | None:
    """Return the commit that a revision had when the hub was last asked, or None.

    huggingface_hub records it whenever it looks up a file, so after a download it is the commit
    that was downloaded.
    """
    if revision is not None and is_commit(revision):
        return revision
    folder = _folder(name, kind)
    if folder is None:
        return None
    try:
        ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
        return ref.read_text("utf-8").strip() or None
    except OSError:
        return None


def snapshot(name: str, kind: Kind, revision: str | None) -> Path | None:
    """Return the folder of a commit in the cache, which may lack files, or None."""
    commit, folder = commit_of(name, kind, revision), _folder(name, kind)
    if commit is None or folder is None:
        return None
    path = folder / "snapshots" / commit
    return path if path.is_dir() else None


def missing_files(name: str, revision: str | None, *, weights: bool = True) -> list[str]:
    """Return the files of a model that a run needs and the cache does not have.

    weights: include the model's weights.
    """

    def is_cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    if is_cached(ADAPTER):
        return [] if is_cached(ADAPTER_WEIGHTS) else [ADAPTER_WEIGHTS]
    missing = [] if is_cached("config.json") else ["config.json"]
    if not any(is_cached(file) for file in _TOKENIZERS):
        missing.append(TOKENIZER)
    if not weights or is_cached(WEIGHTS):
        return missing
    index = try_to_load_from_cache(name, WEIGHTS_INDEX, revision=revision)
    if not isinstance(index, str):
        return [*missing, f"{WEIGHTS} (or its shards)"]
    shards = set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values())
    return missing + [shard for shard in sorted(shards) if not is_cached(shard)]


def _folder(name: str, kind: Kind) -> Path | None:
    """Return the folder of a repository; None if the name can only be a path."""
    try:
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    except HFValidationError:
        return None
