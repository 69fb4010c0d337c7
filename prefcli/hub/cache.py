"""What of a repository on the hub is in the cache, where the hub itself can't be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from prefcli.recipe.paths import is_commit

Kind = Literal["model", "dataset"]

TOKENIZER = "tokenizer.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json")
_INDEX = "model.safetensors.index.json"


def offline() -> bool:
    """Has the user, or the lack of a network, ruled out the hub?"""
    return bool(constants.HF_HUB_OFFLINE)


def commit_of(name: str, kind: Kind, revision: str | None) -> str | None:
    """The commit that a revision had when the hub was last asked; None where it never was.

    The hub's client writes that down whenever it looks for a file, so that after a download this
    is the commit of what was downloaded.
    """
    if revision is not None and is_commit(revision):
        return revision
    noted = _folder(name, kind) / "refs" / (revision or constants.DEFAULT_REVISION)
    try:
        return noted.read_text("utf-8").strip() or None
    except OSError:
        return None


def snapshot(name: str, kind: Kind, revision: str | None) -> Path | None:
    """The folder of that commit's files, all or some of them; None where there is none."""
    commit = commit_of(name, kind, revision)
    folder = _folder(name, kind) / "snapshots" / (commit or "")
    return folder if commit is not None and folder.is_dir() else None


def missing_files(name: str, revision: str | None, *, weights: bool = True) -> list[str]:
    """Files that a run needs and the cache lacks. weights: those of the model, too."""

    def path(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    if path(ADAPTER):
        return [] if path(ADAPTER_WEIGHTS) else [ADAPTER_WEIGHTS]
    lacking = [] if path("config.json") else ["config.json"]
    if not any(path(file) for file in _TOKENIZERS):
        lacking.append(TOKENIZER)
    if not weights or path("model.safetensors"):
        return lacking
    index = path(_INDEX)
    if index is None:
        return [*lacking, "model.safetensors (or its shards)"]
    shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    return lacking + [shard for shard in sorted(shards) if not path(shard)]


def _folder(name: str, kind: Kind) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
