"""Models compared on held-out rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Offline,
    check_writable,
    command_app,
    heavy_half,
    print_json,
    write_file,
)
from prefcli.cli.run_or_recipe import (
    Page,
    RunOrRecipe,
    open_run_or_recipe,
    split_overrides,
    trained_model,
)
from prefcli.console import document, say

app = command_app()


@app.command("eval")
def evaluate(
    recipe: RunOrRecipe,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|KEY=VALUE]...",
            help="Hub ids, folders of models, adapters or checkpoints, and runs to compare. With "
            "RUN, its model/ is the first; with RECIPE alone, that of its run is evaluated, or the "
            "starting model. Also settings to change, e.g. data.max_length=512.",
        ),
    ] = None,
    method: MethodOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Rows to evaluate on, in place of the recipe's data.eval.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="COLUMN",
            help="Also show the metrics for each value of a column. Can be repeated.",
        ),
    ] = None,
    no_reference: Annotated[
        bool,
        typer.Option(
            "--no-reference", help="Load no reference: likelihoods and their accuracy only."
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Write what --json prints to a file."),
    ] = None,
    html: Page = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Compare models on held-out rows, with intervals.

    Accuracy, margin and KL against the reference, and likelihoods without it. Intervals are
    bootstrapped over prompts. Several models are compared on the same rows with the first one.
    """
    overrides, models = split_overrides(arguments)
    loaded, chosen = open_run_or_recipe(
        recipe, overrides, method, html, offline=offline, as_json=as_json
    )
    if not models or os.path.isdir(recipe):
        models = [trained_model(loaded.recipe, recipe), *models]
    if output is not None:
        check_writable(output)
    with heavy_half(loaded):
        from prefcli.evaluation.eval_page import eval_page
        from prefcli.evaluation.eval_report import as_document, report_lines
        from prefcli.evaluation.evaluate import evaluate as measure

        evaluation = measure(
            loaded.recipe,
            chosen,
            models,
            data=data,
            columns=group or (),
            with_reference=not no_reference,
        )
    content = {"exit_code": 0, "recipe": recipe, **as_document(evaluation)}
    if output is not None:
        write_file(
            Path(output), json.dumps(content, indent=2, default=str) + "\n", option="--output"
        )
    if as_json:
        print_json(content)
        say(*report_lines(evaluation))
    else:
        document("\n".join(report_lines(evaluation)))
    if html is not None:
        write_file(Path(html), eval_page(evaluation), option="--html")
