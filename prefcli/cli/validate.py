"""Checks of recipes that need no torch, and the schema they are checked against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli.download import split_arguments
from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    check_context,
    choose_method,
    command_app,
    open_recipe,
    print_json,
    written_keys,
)
from prefcli.console import print_error, say
from prefcli.errors import ExitCode, PrefcliError, Problem
from prefcli.recipe import Loaded
from prefcli.recipe.local_files import missing_files
from prefcli.recipe.trackers import tracker_problems

app = command_app()


@app.command()
def validate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and overrides for all of them."
        ),
    ],
    method: MethodOption = None,
    as_json: Json = False,
) -> None:
    """Report every mistake in recipes, without torch.

    Warns about trackers, files and folders that are not here; a run or a dry-run needs them.
    """
    recipes, overrides = split_arguments(arguments)
    results = [_check(recipe, overrides, method, quiet=as_json) for recipe in recipes]
    if as_json:
        print_json(results)
    valid = all(result["valid"] for result in results)
    raise typer.Exit(ExitCode.DONE if valid else ExitCode.RECIPE)


def _check(recipe: str, overrides: list[str], method: str | None, *, quiet: bool) -> dict[str, Any]:
    """Validate one recipe, print the result unless `quiet`, and return it for --json."""
    try:
        loaded = open_recipe(recipe, overrides, as_json=quiet)
        methods = list(loaded.recipe.methods)
        check_context(loaded)
        if method is not None:
            methods = [choose_method(loaded, method).name]
    except PrefcliError as error:
        if not quiet:
            for problem in error.problems:
                print_error(f"error: {problem}\n")
        problems = [problem.as_dict() for problem in error.problems]
        return {"recipe": recipe, "valid": False, "problems": problems}
    warnings = [
        loaded.locate(problem)
        for problem in (
            *tracker_problems(loaded.recipe.logging),
            *missing_files(loaded.recipe, Path(recipe).parent),
            *_steps_and_epochs(loaded),
        )
    ]
    if not quiet:
        for warning in warnings:
            print_error(f"warning: {warning}\n")
        say(f"{recipe}: valid ({', '.join(methods)})")
    result: dict[str, Any] = {"recipe": recipe, "valid": True, "methods": methods}
    if warnings:
        result["warnings"] = [warning.as_dict() for warning in warnings]
    return result


def _steps_and_epochs(loaded: Loaded) -> list[Problem]:
    """One problem if both the number of steps and that of epochs are written."""
    both = {("training", "max_steps"), ("training", "num_train_epochs")} <= written_keys(loaded)
    if not both or loaded.recipe.training.max_steps is None:
        return []
    return [
        Problem(
            "training.max_steps decides how long the run is, so num_train_epochs has no effect",
            path="training.num_train_epochs",
            hint="remove one of them",
            code="RCP016",
        )
    ]


@app.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors."""
    from prefcli.recipe.reference import recipe_json_schema

    print_json(recipe_json_schema())
