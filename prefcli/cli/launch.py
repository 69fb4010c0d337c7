"""The processes of a launch section: started, or shown as accelerate's and torchrun's own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
import yaml

from prefcli import first_failure
from prefcli.cli.app import (
    Json,
    LocatedError,
    Overrides,
    RecipeArgument,
    app,
    load_recipe,
    print_json,
    section,
)
from prefcli.console import document, keep_stdout_for_json
from prefcli.errors import PrefcliError, RecipeError
from prefcli.launcher.accelerate_config import accelerate_config, command_lines, processes_in
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.methods import METHODS
from prefcli.recipe import Loaded


def start_processes(loaded: Loaded) -> None:
    """Where the recipe asks for processes and none of them is this one: run this very command in
    each, and exit with their code."""
    launch = loaded.recipe.launch
    if launch is None or first_failure.launched():
        return
    signals = SignalForwarder()
    from prefcli.launcher.launch import launch_processes  # border

    try:
        code = launch_processes(loaded.recipe, launch, sys.argv[1:], signals)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    finally:
        signals.restore()
    raise typer.Exit(code)


@app.command("launch")
def launch(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="As in `prefcli METHOD`.")],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Print what `prefcli METHOD RECIPE` starts, for accelerate and torchrun.

    It is a file for `accelerate launch --config_file`, with the command lines in its comments.
    """
    keep_stdout_for_json(as_json)
    if method not in METHODS:
        raise RecipeError(f"{method!r} is no method", hint=f"one of {', '.join(METHODS)}")
    loaded = load_recipe(recipe, overrides)
    section(loaded, method)
    asked = loaded.recipe.launch
    if asked is None:
        raise RecipeError(
            "the recipe has no launch section: it trains in one process, or in those of a launcher",
            place=loaded.places.source,
            hint="write one, as in `launch: {strategy: ddp, processes: 8}`",
        )
    try:
        processes = processes_in(asked)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    config = accelerate_config(loaded.recipe, asked, processes)
    words = [method, recipe, *(overrides or [])]
    commands = command_lines(asked, processes, "launch.yaml", words)
    if as_json:
        print_json({"accelerate": config, "commands": commands})
        return
    told = "".join(f"# {line}\n" for line in ["What this file is for:", *commands])
    document(told + yaml.safe_dump(config, sort_keys=False).rstrip())
