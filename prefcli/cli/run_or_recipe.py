"""The arguments of commands on a recipe or the folder of a run."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    check_context,
    check_writable,
    choose_method,
    open_recipe,
    resolve_offline,
)
from prefcli.console import keep_stdout_for_json, say
from prefcli.errors import RecipeError
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded, Recipe

RunOrRecipe = Annotated[
    str, typer.Argument(metavar="RECIPE|RUN", help="A YAML recipe, or the folder of a run.")
]
Page = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Also write the result as a page.")
]


def open_run_or_recipe(
    name: str,
    overrides: list[str] | None,
    method: str | None,
    page: str | None,
    *,
    offline: bool,
    as_json: bool,
) -> tuple[Loaded, Method]:
    """Load a recipe, or that of a run folder, with its method. Raises RecipeError.

    method: the value of `--method`; a run has its own. page: is checked to be writable.
    """
    loaded, chosen = _opened(name, overrides, method, as_json=as_json)
    check_context(loaded)
    if page is not None:
        check_writable(page, "--html")
    resolve_offline(loaded, offline=offline)
    return loaded, chosen


def open_recipe_of(name: str, overrides: list[str] | None, *, as_json: bool) -> Loaded:
    """Load a recipe, or that of a run folder. Raises RecipeError."""
    keep_stdout_for_json(as_json)
    if not os.path.isdir(name):
        return open_recipe(name, overrides, as_json=as_json)
    from prefcli.report.run_data import RECIPE_FILE

    path = os.path.join(name, RECIPE_FILE)
    if not os.path.isfile(path):
        raise RecipeError(
            f"the folder has no {RECIPE_FILE}",
            place=name,
            code="RUN100",
            hint="name the output_dir of a run, or a recipe",
        )
    return open_recipe(path, overrides, as_json=as_json)


def _opened(
    name: str, overrides: list[str] | None, method: str | None, *, as_json: bool
) -> tuple[Loaded, Method]:
    loaded = open_recipe_of(name, overrides, as_json=as_json)
    if not os.path.isdir(name):
        return loaded, choose_method(loaded, method)
    from prefcli.report.run_data import read_run

    ran = read_run(name).method
    return loaded, choose_method(loaded, method or (ran if ran in METHODS else None))


def trained_model(recipe: Recipe, name: str) -> str:
    """The model/ of a run, or the starting model of a recipe that has not been trained.

    name: the recipe or the run on the command line.
    """
    folder = os.path.join(name if os.path.isdir(name) else recipe.output_dir, "model")
    names = ("config.json", "adapter_config.json")
    if any(os.path.isfile(os.path.join(folder, file)) for file in names):
        return folder
    if os.path.isdir(name):
        raise RecipeError(
            f"{folder} is not there: the run has not finished",
            code="RUN101",
            hint=f"run it to its end, or name a checkpoint next to its recipe: "
            f"{os.path.join(name, 'recipe.yaml')} {os.path.join(name, 'checkpoint-500')}",
        )
    say(f"{recipe.output_dir} has no model/; taking the starting model")
    return recipe.model.name_or_path


def split_overrides(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Divide arguments into KEY=VALUE and names: a file or folder may have = in its name."""
    from prefcli.recipe.overrides import key_path

    overrides: list[str] = []
    names: list[str] = []
    for argument in arguments or []:
        key, equals, _ = argument.partition("=")
        is_override = equals and not os.path.exists(argument) and key_path(key) is not None
        (overrides if is_override else names).append(argument)
    return overrides, names
