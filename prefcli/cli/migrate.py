"""Recipes from other tools' configs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document
from prefcli.errors import ExitCode, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.overrides import key_path

app = command_app()


@app.command()
def migrate(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE [KEY=VALUE ...] | -- COMMAND ...",
            help="A YAML file, a README or a shell script of alignment-handbook, trl, "
            "LLaMA-Factory, axolotl or oumi, or W&B's config.yaml of a run, with settings of the "
            "recipe that it lacks; or the words of a training command.",
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="The method, if the file does not determine it.", metavar="|".join(METHODS)
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Write the recipe here.", metavar="RECIPE.yaml")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Number of devices, if no launcher states it.")
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Write what could be translated, with the rest as comments; the exit code is "
            "still 2.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert another tool's config or command to a recipe.

    The recipe goes to standard output, the list of renamed and dropped keys to standard error.
    """
    if method is not None and method not in METHODS:
        raise RecipeError(
            f"--method {method}: no such method",
            code="RCP019",
            hint=f"write one of {', '.join(METHODS)}",
        )
    if output is not None and Path(output).exists():
        raise RecipeError(f"{output} exists already", code="RCP027", hint="name a new file")
    from prefcli.recipe.migrate import migrate as migrate_config

    file, *overrides = source
    is_file = all(key_path(word.partition("=")[0]) and "=" in word for word in overrides)
    result = migrate_config(
        file if is_file else source, method, devices, overrides if is_file else ()
    )
    print(*result.lines(), sep="\n", file=sys.stderr)
    text = result.partial if partial and result.problems else result.text
    if output is not None and text is not None:
        _write(Path(output), text)
    if as_json:
        print_json(result.as_dict())
    elif output is None and text is not None:
        document(text.rstrip("\n"))
    raise typer.Exit(ExitCode.RECIPE if result.problems else ExitCode.DONE)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(
            f"can't write {path}: {error.strerror}",
            code="RCP027",
            hint="name another file with --output",
        ) from None
    print(f"written to {path}", file=sys.stderr)
