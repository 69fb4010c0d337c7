"""Python code that comes with a model: run only with the recipe's consent, at a fixed commit."""

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
    """Return revision and trust_remote_code for from_pretrained. Raises RecipeError.

    trust_remote_code is always set: unset, transformers would ask at the terminal, and a job would
    wait for an answer.
    """
    trusted = options.trust_remote_code
    if trusted:
        _check_code_origin(options.name_or_path, options.revision)
    return {"revision": options.revision, "trust_remote_code": trusted}


def from_config_kwargs(config: PretrainedConfig, options: Model) -> dict[str, Any]:
    """Return trust_remote_code and code_revision for from_config."""
    trusted = options.trust_remote_code
    commit = getattr(config, "_commit_hash", None)
    has_code = trusted and bool(getattr(config, "auto_map", None)) and commit is not None
    return {"trust_remote_code": trusted} | ({"code_revision": commit} if has_code else {})


@lru_cache
def _check_code_origin(name: str, revision: str | None) -> None:
    """Refuse code without a pinned commit, and code of another repository.

    transformers follows OWNER/NAME--file.Class to the latest commit of that repository.
    """
    if not is_local(name) and not is_commit(revision):
        raise RecipeError(
            Problem(
                f"trust_remote_code runs code from the hub, and {name} is not pinned to a commit",
                path="model.trust_remote_code",
                hint="write model.revision: COMMIT; an adapter pins its base with the revision in "
                "adapter_config.json",
                code="MDL024",
            )
        )
    config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    auto_maps = [
        config.get("auto_map"),
        get_tokenizer_config(name, revision=revision).get("auto_map"),
    ]
    classes = [str(path) for auto_map in auto_maps if auto_map for path in _class_paths(auto_map)]
    others = sorted({path.partition("--")[0] for path in classes if "--" in path})
    if others:
        raise RecipeError(
            Problem(
                f"{name} loads code from {', '.join(others)} without a pinned commit",
                path="model.trust_remote_code",
                hint="copy those files next to the model and correct auto_map in its config",
                code="MDL024",
            )
        )
    if classes:
        at = f" at {revision}" if revision is not None else ""
        warn(f"model.trust_remote_code: running the Python files of {name}{at}")


def _class_paths(auto_map: Any) -> list[Any]:
    """List the class paths of an auto_map: a dict, or a list in old tokenizers."""
    values = list(auto_map.values()) if isinstance(auto_map, dict) else list(auto_map)
    return [
        path for value in values for path in (value if isinstance(value, list) else [value]) if path
    ]
