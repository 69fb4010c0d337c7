"""Starts the processes of a launch section, or prints the equivalent commands."""

from __future__ import annotations

import sys

import typer

from prefcli import first_failure
from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Overrides,
    RecipeArgument,
    choose_method,
    command_app,
    located,
    open_recipe,
    print_json,
)
from prefcli.console import document
from prefcli.errors import RecipeError
from prefcli.recipe import Loaded

app = command_app()


def start_processes(loaded: Loaded) -> None:
    """Run this command in the processes of the launch section, and exit with their exit code.

    Returns at once in one of those processes, and for a recipe without a launch section.
    """
    launch = loaded.recipe.launch
    if launch is None or first_failure.launched():
        return
    from prefcli.launcher.signal_forwarding import SignalForwarder

    signals = SignalForwarder()
    from prefcli.launcher.launch import launch_processes

    try:
        with located(loaded):
            code = launch_processes(loaded.recipe, launch, sys.argv[1:], signals)
    finally:
        signals.restore()
    raise typer.Exit(code)


@app.command("launch")
def launch(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: MethodOption = None,
    as_json: Json = False,
) -> None:
    """Print how `prefcli METHOD RECIPE` starts its processes.

    The output is a file for `accelerate launch --config_file`, with the equivalent commands of
    accelerate and torchrun in its comments.
    """
    import yaml

    from prefcli.launcher.accelerate_config import accelerate_config, command_lines, processes_in

    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    options = loaded.recipe.launch
    if options is None:
        raise RecipeError(
            "the recipe has no launch section: it trains in one process, or in those of an "
            "external launcher",
            code="RCP030",
            place=loaded.places.source,
            hint="add one, e.g. `launch: {strategy: ddp, processes: 8}`",
        )
    with located(loaded):
        processes = processes_in(options)
    config = accelerate_config(loaded.recipe, options, processes)
    arguments = [chosen.name, recipe, *(overrides or [])]
    commands = command_lines(options, processes, "launch.yaml", arguments)
    if as_json:
        print_json({"accelerate": config, "commands": commands})
        return
    header = "".join(f"# {line}\n" for line in ["How to use this file:", *commands])
    document(header + yaml.safe_dump(config, sort_keys=False).rstrip())
