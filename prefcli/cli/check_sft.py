"""The gate before preference tuning as a separate command."""

from __future__ import annotations

import typer

from prefcli.cli.recipe_command import (
    Json,
    Offline,
    Overrides,
    RecipeArgument,
    command_app,
    heavy_half,
    open_recipe,
    print_json,
    resolve_offline,
)
from prefcli.console import say
from prefcli.errors import ExitCode

app = command_app()


@app.command("check-sft")
def check_sft(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of chosen responses before training.

    Exits with 0 if the starting model is ready for preference tuning: if the perplexity is at most
    check_sft.max_perplexity. Exits with 3 if it is not.
    """
    loaded = open_recipe(recipe, overrides, as_json=as_json)
    resolve_offline(loaded, offline=offline)
    with heavy_half(loaded):
        from prefcli.evaluation.check_sft import check_sft as measure

        report = measure(loaded.recipe)
    say(*report.lines())
    if as_json:
        print_json(report.as_dict())
    raise typer.Exit(ExitCode.DONE if report.passed else ExitCode.GATE)
