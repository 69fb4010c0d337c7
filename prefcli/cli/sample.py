"""Responses of models, without a recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli.recipe_command import (
    Offline,
    check_writable,
    command_app,
    heavy_half,
    writing,
)
from prefcli.console import document, say
from prefcli.errors import RecipeError
from prefcli.recipe.offline import go_offline
from prefcli.recipe.sections.output import LOWEST_TEMPERATURE
from prefcli.secrets import redact

app = command_app()

Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")]
ChatTemplate = Annotated[str | None, typer.Option(metavar="FILE", help="Use this chat template.")]


@app.command()
def sample(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model folders, runs or hub ids to compare."),
    ],
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Data file with a `prompt` column.", metavar="FILE"),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="A prompt; a user's turn if the model has a chat template. Can be repeated.",
            metavar="TEXT",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write prompts and completions as JSONL.", metavar="FILE"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest completion, in tokens.")
    ] = 128,
    temperature: Temperature = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random sampler.")
    ] = 42,
    chat_template: ChatTemplate = None,
    offline: Offline = False,
) -> None:
    """Generate responses with one or more models."""
    if prompts is None and not prompt:
        raise RecipeError(
            "no prompts are given", code="RCP034", hint='write --prompts FILE or --prompt "TEXT"'
        )
    _check_values(models, prompts, prompt or [], temperature)
    if offline:
        go_offline()
    if output is not None:
        check_writable(output)  # before minutes of generation
    with heavy_half():
        from prefcli.evaluation.generate import Sampling, generate_answers

    sampling = Sampling(max_new_tokens, temperature, seed)
    rows: list[dict[str, Any]] = []
    # After each model, so that a later one that fails costs no answers.
    for rows in generate_answers(models, prompts, chat_template, sampling, texts=prompt or ()):
        if output is not None:
            lines = [redact(json.dumps(row)) + "\n" for row in rows]
            with writing(output):
                Path(output).write_text("".join(lines), encoding="utf-8")
    if output is not None:
        say(f"{len(rows)} prompts answered, written to {output}")
        return
    for row in rows:
        answers = [f"  {model}: {row['completions'][model].strip()}" for model in models]
        document("\n".join(["", f"prompt: {row['shown']}", *answers]))


def _check_values(
    models: list[str], prompts: str | None, texts: list[str], temperature: float
) -> None:
    """Raise RecipeError for values that typer accepts and no model can use."""
    files = [] if prompts is None else [prompts]
    given = {"MODEL": models, "--prompts": files, "--prompt": texts}
    for empty in (name for name, values in given.items() if not all(values)):
        raise RecipeError(
            f"{empty} is empty", code="RCP033", hint="check the variable that it comes from"
        )
    check_temperature(temperature)


def check_temperature(temperature: float) -> None:
    """Raise RecipeError for a temperature that rounds all probabilities to 0 or is not finite."""
    if temperature and not LOWEST_TEMPERATURE <= temperature < math.inf:
        raise RecipeError(
            f"--temperature {temperature:g} is out of range",
            code="RCP033",
            hint=f"write 0 for greedy answers, or at least {LOWEST_TEMPERATURE:g}",
        )
