"""Defaults that depend on the method or on other settings, resolved once and saved with the run.

A saved recipe then has no open value, so that a default of a later version cannot change a run that
is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.recipe.aliases import renamed
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.load import leaves
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import RewardModel, Training
from prefcli.recipe.source_map import dotted
from prefcli.text import first_line


def default_learning_rate(recipe: Recipe, method: Method) -> float:
    """The method's usual learning rate for what the recipe trains."""
    return method.learning_rates.lora if recipe.trains_adapter else method.learning_rates.full


_PLAIN_BATCH = 8
"""Rows per device where no memory decides."""


def plain_batch_size(training: Training, devices: int = 1, smallest: int = 1) -> int:
    """Return the rows per device where no memory decides: a divisor of those of a step."""
    share = training.global_batch_size // devices
    sizes = [n for n in range(smallest, _PLAIN_BATCH + 1) if share % n == 0]
    return max(sizes, default=smallest)


def with_batch_size(recipe: Recipe, rows: int) -> Recipe:
    """Return the recipe with so many rows per device."""
    training = recipe.training.model_copy(update={"per_device_train_batch_size": rows})
    return recipe.model_copy(update={"training": training})


def with_strategy(recipe: Recipe, strategy: Strategy) -> Recipe:
    """Return the recipe with a strategy; unchanged for fsdp1, which external launchers start."""
    if strategy == "fsdp1":
        return recipe
    launch = recipe.launch.model_copy(update={"strategy": strategy})
    return recipe.model_copy(update={"launch": launch})


def resolve_defaults(recipe: Recipe, method: Method) -> Recipe:
    """The recipe with every default that depends on the method or on other settings filled in.

    What depends on the devices stays open (memory/automatic.py).
    """
    if method.head == "reward":
        recipe = recipe.model_copy(update={"model": RewardModel.of(recipe.model)})
    smallest, _ = method.smallest_batch()
    if recipe.training.per_device_train_batch_size == "auto" and smallest > 1:
        # The loss depends on the number, so that it must not depend on the machine.
        recipe = with_batch_size(recipe, plain_batch_size(recipe.training, smallest=smallest))
    if recipe.reference.precompute and not method.precomputes_reference:
        reference = recipe.reference.model_copy(update={"precompute": False})
        recipe = recipe.model_copy(update={"reference": reference})
    if recipe.lora is not None and not method.keeps_adapter_dropout:
        lora = recipe.lora.model_copy(update={"dropout": 0.0})
        recipe = recipe.model_copy(update={"lora": lora})
    training = recipe.training
    values: dict[str, Any] = {}
    if training.learning_rate is None:
        values["learning_rate"] = default_learning_rate(recipe, method)
    if training.warmup_ratio is None and training.warmup_steps is None:
        values["warmup_ratio"] = training.warmup
    if not values:
        return recipe
    return recipe.model_copy(update={"training": training.model_copy(update=values)})


def read_saved_recipe(path: Path, now: Recipe, effective: Mapping[str, Any]) -> dict[str, Any]:
    """A run's recipe.yaml as plain data, for a comparison with the recipe of now.

    effective: the run's trl arguments. They have the values that an earlier version, which saved
    recipes with open defaults, used. Raises RecipeError for keys that have a new name.
    """
    saved = _read_mapping(path)
    names = {dotted(key): renamed(dotted(key)) for key in _keys(saved)}
    changed = [f"{old} is now {new}" for old, new in names.items() if new is not None]
    if changed:
        raise RecipeError(
            Problem(
                f"the run's recipe has names of an earlier version: {', '.join(changed)}",
                place=str(path),
                path="output_dir",
                hint=f"rename them in {path}, or write a new output_dir",
                code="RCP002",
            )
        )
    training = saved.get("training", {})
    if not isinstance(training, dict):
        return saved
    if training.get("learning_rate") is None:
        training["learning_rate"] = effective.get("learning_rate", now.training.learning_rate)
    if training.get("warmup_ratio") is None and training.get("warmup_steps") is None:
        # Earlier versions had the same rule.
        training["warmup_ratio"] = now.training.warmup_ratio
    return saved


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a run's recipe. Raises RecipeError for a file that prefcli cannot have written."""
    try:
        saved = yaml.safe_load(path.read_text("utf-8"))
        what = "is not a recipe"
    # yaml raises ValueError for escapes beyond Unicode, and for dates.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        saved, what = None, f"can't be read: {first_line(error)}"
    if isinstance(saved, dict) and all(isinstance(key, str) for key in saved):
        return saved
    raise RecipeError(
        Problem(
            f"{path} {what}",
            path="output_dir",
            hint="restore the file, or name another output_dir",
            code="RUN016",
        )
    )


def _keys(data: Mapping[str, Any]) -> list[tuple[str | int, ...]]:
    """The paths of all keys, sections first."""
    paths = [path[:end] for path, _ in leaves(data) for end in range(1, len(path) + 1)]
    return list(dict.fromkeys(paths))
