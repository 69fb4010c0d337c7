"""Python that comes with a model: run only where the recipe says so, and of one place alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from prefcli.console import warn
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.paths import is_commit, is_local
from prefcli.recipe.sections import Model


def from_pretrained_kwargs(options: Model) -> dict[str, Any]:
    """What each from_pretrained is told. Raises RecipeError where the code is of elsewhere.

    Told nothing about code, transformers would ask at the terminal, and a job would wait there.
    """
    trusted = options.trust_remote_code
    if trusted:
        _only_its_own(options.name_or_path, options.revision)
    return {"revision": options.revision, "trust_remote_code": trusted}


def from_config_kwargs(config: PretrainedConfig, options: Model) -> dict[str, Any]:
    """The same for from_config, which knows no revision but that of the code."""
    trusted = options.trust_remote_code
    commit = getattr(config, "_commit_hash", None)
    theirs = trusted and bool(getattr(config, "auto_map", None)) and commit is not None
    return {"trust_remote_code": trusted} | ({"code_revision": commit} if theirs else {})


@lru_cache
def _only_its_own(name: str, revision: str | None) -> None:
    """transformers follows OWNER/NAME--file.Class to another repository, whatever its state."""
    if not is_local(name) and not is_commit(revision):
        raise RecipeError(
            Problem(
                f"trust_remote_code runs code from the hub, and {name} is not named by its commit",
                path="model.trust_remote_code",
                hint="an adapter names its base's in the revision of its adapter_config.json",
            )
        )
    config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    known = [config.get("auto_map"), get_tokenizer_config(name, revision=revision).get("auto_map")]
    classes = [str(each) for found in known if found for each in _flat(found)]
    others = sorted({each.partition("--")[0] for each in classes if "--" in each})
    if others:
        raise RecipeError(
            Problem(
                f"{name} takes its code from {', '.join(others)}, of which no commit is named",
                path="model.trust_remote_code",
                hint="copy the files beside the model, and correct auto_map in its config",
            )
        )
    if classes:
        where = f" at {revision}" if revision is not None else ""
        warn(f"model.trust_remote_code: the Python files of {name}{where} are run")


def _flat(found: Any) -> list[Any]:
    """auto_map: {class: place}, in old tokenizers a list of places."""
    values = list(found.values()) if isinstance(found, dict) else list(found)
    return [
        each for value in values for each in (value if isinstance(value, list) else [value]) if each
    ]
