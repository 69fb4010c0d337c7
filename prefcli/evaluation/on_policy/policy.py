"""The policy that answers the prompts, and what identifies it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefcli.errors import RecipeError
from prefcli.evaluation.arguments import model_argument
from prefcli.hub.cache import commit_of, snapshot
from prefcli.hub.commits import Repository, base_of
from prefcli.recipe import Recipe
from prefcli.recipe.sections import Model

_BLOCKS, _BLOCK = 64, 4096
"""Blocks of a file of weights that are digested, and their bytes."""


def policy_of(recipe: Recipe, run_model: str | None) -> Model:
    """Return the policy: the recipe's starting model, or the model/ of its run.

    run_model: the folder of that model.
    """
    if run_model is None:
        return recipe.model
    own = {"revision": None, "tokenizer": None, "tokenizer_revision": None, "adapter": None}
    name = model_argument(run_model, "RUN").name_or_path
    fixed = {"name_or_path": name, "init": "pretrained", "quantization": None}
    return recipe.model.model_copy(update={**own, **fixed})


def identity(options: Model) -> dict[str, Any]:
    """Return what identifies a model's weights, read from its files and not from the model.

    An adapter comes with its base.
    """
    repository: Repository | None = Repository("", "model", options.name_or_path, options.revision)
    parts = []
    while repository is not None:
        folder = Path(repository.name).expanduser()
        commit = None
        if not folder.is_dir():
            commit = commit_of(repository.name, "model", repository.revision)
            folder = snapshot(repository.name, "model", repository.revision) or folder
        parts.append(commit or _digest(folder))
        repository = base_of(repository)
    return {
        "model.name_or_path": options.name_or_path,
        "model.revision": options.revision,
        "model.weights": parts,
    }


def _digest(folder: Path) -> str:
    """Digest the configuration, and the size and some blocks of each file of weights."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*.json")):
        if file.name in ("config.json", "adapter_config.json"):
            digest.update(file.read_bytes())
    try:
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            for block in _blocks(file):
                digest.update(block)
    except OSError as error:
        raise RecipeError(
            f"can't read {folder}: {error.strerror}",
            code="MDL002",
            place="model.name_or_path",
            hint="check the files of the model",
        ) from None
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    size = os.path.getsize(file)
    with file.open("rb") as opened:
        for i in range(_BLOCKS):
            opened.seek(size * i // _BLOCKS)
            yield opened.read(_BLOCK)
