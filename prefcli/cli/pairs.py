"""Rows to train on, made of judged completions of the policy."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    Json,
    Offline,
    Overrides,
    checked_output,
    command_app,
    heavy_half,
    print_json,
    resolve_offline,
)
from prefcli.cli.run_or_recipe import RunOrRecipe, open_recipe_of, trained_model
from prefcli.console import say

app = command_app()


@app.command()
def pairs(
    recipe: RunOrRecipe,
    output: Annotated[
        str,
        typer.Option("--output", metavar="FILE", help="The rows: .jsonl or .parquet."),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check judge, prompts, model and disk; sample nothing."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the output, and results of other settings."),
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Sample completions, judge them and write pairs.

    The model of the recipe, or of the run, answers the prompts; the recipe's judge scores the
    completions, and its section pairs decides which rows they become: pairs for dpo, labelled rows
    for kto, or the best completions for sft. A stopped start is continued by the same command.
    """
    loaded = open_recipe_of(recipe, overrides, as_json=as_json)
    path = checked_output(output, overwrite=overwrite)
    resolve_offline(loaded, offline=offline)
    with heavy_half(loaded):
        from prefcli.evaluation.on_policy import check_pairs, make_pairs, policy_of

        run_model = trained_model(loaded.recipe, recipe) if os.path.isdir(recipe) else None
        policy = policy_of(loaded.recipe, run_model)
        if dry_run:
            lines = check_pairs(loaded.recipe, policy, path, overwrite=overwrite)
            document = {"checks": lines}
            say(*lines, "done: no error was found; nothing was sampled")
        else:
            summary = make_pairs(loaded.recipe, policy, path, overwrite=overwrite)
            document = summary.as_dict()
            say(*summary.lines())
    if as_json:
        print_json({"exit_code": 0, "recipe": recipe, "dry_run": dry_run, **document})
