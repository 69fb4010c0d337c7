"""Adapters as whole models."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from prefcli.cli.recipe_command import (
    Json,
    Offline,
    check_writable,
    command_app,
    heavy_half,
    print_json,
)
from prefcli.console import keep_stdout_for_json, say
from prefcli.errors import RecipeError
from prefcli.recipe.offline import go_offline

app = command_app()


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="RUN|ADAPTER", help="A run that trained an adapter, or one.")
    ],
    output: Annotated[
        str, typer.Option("--output", help="Folder of the merged model.", metavar="FOLDER")
    ],
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Type of the saved weights.")
    ] = "bfloat16",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Add an adapter to the weights of its base model.

    For tools that serve whole models. The sum is computed in float32 and compared with base and
    adapter before it is saved.
    """
    keep_stdout_for_json(as_json)
    if os.path.lexists(output):
        raise RecipeError(
            f"{output} exists already", code="RCP027", hint="remove it, or name another folder"
        )
    check_writable(output)
    if offline:
        go_offline()
    with heavy_half():
        import torch

        from prefcli.evaluation.merge import merge as merge_adapter

    result = merge_adapter(adapter, Path(output), getattr(torch, dtype))
    say(*result.lines())
    if as_json:
        print_json(asdict(result))
