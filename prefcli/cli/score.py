"""Rewards of the responses in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Offline,
    Overrides,
    checked_output,
    command_app,
    heavy_half,
    print_json,
    refuse_without_effect,
    write_file,
)
from prefcli.cli.run_or_recipe import Page, RunOrRecipe, open_run_or_recipe, trained_model
from prefcli.console import say

app = command_app()


@app.command()
def score(
    recipe: RunOrRecipe,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Rows with prompt and responses (a list), prompt and response, or pairs.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", metavar="FILE", help="The rows with scores: .jsonl or .parquet."),
    ],
    overrides: Overrides = None,
    method: MethodOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Score with this model instead of the run's model/."
        ),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            "--reward-model",
            metavar="MODEL",
            help="Score with a sequence classification model instead of a policy.",
        ),
    ] = None,
    reference: Annotated[
        bool | None,
        typer.Option(
            "--reference/--no-reference",
            help="Divide by the reference's probability; default: as the method does.",
        ),
    ] = None,
    per_token: Annotated[
        bool | None,
        typer.Option(
            "--per-token/--sum",
            help="Divide each reward by the tokens of the response; default: as the method does.",
        ),
    ] = None,
    html: Page = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write the rewards of responses next to them.

    The reward is beta * log(policy / reference), with the log-probabilities that it is made of, the
    rank among the responses to the same prompt, and the best of them. A stopped start is continued
    by the same command.
    """
    loaded, chosen = open_run_or_recipe(
        recipe, overrides, method, html, offline=offline, as_json=as_json
    )
    path = checked_output(output)
    if chosen.head == "reward" and model is None and reward_model is None:
        reward_model = trained_model(loaded.recipe, recipe)
    if reward_model is not None:
        given = {"--model": model, "--reference": reference, "--per-token": per_token}
        without_effect = [name for name, value in given.items() if value is not None]
        refuse_without_effect(without_effect, "--reward-model", "remove it")
    with heavy_half(loaded):
        from prefcli.evaluation.score_file import open_rows, score_file
        from prefcli.evaluation.score_page import score_page
        from prefcli.evaluation.scorers import RewardFormula, policy_scorer, reward_model_scorer

        open_rows(loaded.recipe, data)  # a file that is not there is found before the models load
        if reward_model is not None:
            scorer = reward_model_scorer(loaded.recipe, reward_model)
        else:
            formula = RewardFormula(
                beta=chosen.reward_scale,
                with_reference=chosen.needs_reference if reference is None else reference,
                per_token=not chosen.reward_is_sum if per_token is None else per_token,
            )
            name = trained_model(loaded.recipe, recipe) if model is None else model
            scorer = policy_scorer(loaded.recipe, name, formula)
        with scorer as opened:
            summary = score_file(loaded.recipe, data, path, opened)
    say(*summary.lines())
    if html is not None:
        write_file(Path(html), score_page(summary), option="--html")
    if as_json:
        print_json({"exit_code": 0, "recipe": recipe, "method": chosen.name, **asdict(summary)})
