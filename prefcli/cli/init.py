"""A first recipe, written from a few answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import check_method, command_app, write_file
from prefcli.console import say
from prefcli.errors import RecipeError
from prefcli.methods import METHODS

app = command_app()


@app.command()
def init(
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="The file to write.")] = Path(
        "recipe.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of the model.", metavar="MODEL")
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Data to train on: a file or a hub id.", metavar="DATA")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--eval", help="Data to evaluate on. Default: 5 % of the training data.", metavar="DATA"
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Default: dpo.", metavar="|".join(METHODS))
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train a LoRA adapter instead of all weights.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a recipe for your own model and data.

    Each key has a comment. Asks for what is not given as an option, if there is a terminal.
    """
    from prefcli.recipe.load import load_text
    from prefcli.recipe.starter import starter_recipe

    if os.path.exists(recipe) and not force:
        raise RecipeError(
            f"{recipe} exists already",
            code="RCP027",
            hint="name another file, or add --force to overwrite it",
        )
    name = _answer("--method", "Method", method, default="dpo")
    check_method(name)
    text = starter_recipe(
        name,
        _answer("--model", "Model (hub id or folder)", model),
        _answer("--train", "Training data (file or hub id)", train),
        held_out=evaluate,
        lora=lora,
        output_dir=f"runs/{recipe.stem}-{name}",
    )
    load_text(text, str(recipe))
    write_file(recipe, text)
    say(
        "next:",
        f"  prefcli validate {recipe}",
        f"  prefcli data {recipe}",
        f"  prefcli {name} {recipe} --dry-run",
        f"  prefcli {name} {recipe}",
    )


def _answer(option: str, question: str, given: str | None, default: str | None = None) -> str:
    """The option's value, or the answer at the terminal. Raises RecipeError without one."""
    if given is not None:
        return given
    if sys.stdin.isatty() and sys.stdout.isatty():
        return str(typer.prompt(question, default=default))
    if default is not None:
        return default
    raise RecipeError(
        f"{option} is missing",
        code="RCP034",
        hint="write prefcli init RECIPE --model MODEL --train DATA",
    )
