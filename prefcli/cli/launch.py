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
    heavy_half,
    located,
    open_recipe,
    print_json,
)
from prefcli.console import document
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.methods import Method
from prefcli.recipe import Loaded
from prefcli.recipe.schema import Recipe

app = command_app()


def start_processes(loaded: Loaded, method: Method, resume: str, *, allow_unusual: bool) -> None:
    """Run this command in the processes of the launch section, and exit with their exit code.

    Returns at once in one of those processes, and if this process is enough.
    """
    if first_failure.launched():
        return
    with heavy_half(loaded):
        from prefcli.launcher.launch import launch_processes, resolve_launch

        recipe = resolve_launch(loaded.recipe, method, resume, allow_unusual=allow_unusual)
        if recipe is None:
            return
        signals = SignalForwarder()
        try:
            code = launch_processes(recipe, _worker_arguments(loaded.recipe, recipe), signals)
        finally:
            signals.restore()
    raise typer.Exit(code)


def _worker_arguments(recipe: Recipe, resolved: Recipe) -> list[str]:
    """Return the arguments of this command, with the settings that were auto and no longer are."""
    arguments = sys.argv[1:]
    if recipe.launch.strategy == "auto":
        arguments.append(f"launch.strategy={resolved.launch.strategy}")
    rows = resolved.training.per_device_train_batch_size
    if rows != recipe.training.per_device_train_batch_size:
        arguments.append(f"training.per_device_train_batch_size={rows}")
    return arguments


@app.command("launch")
def launch(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: MethodOption = None,
    as_json: Json = False,
) -> None:
    """Print how a run starts its processes.

    The output is a file for `accelerate launch --config_file`, with the equivalent commands of
    accelerate and torchrun in its comments.
    """
    import yaml

    from prefcli.launcher.accelerate_config import accelerate_config, command_lines, processes_in

    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    options = loaded.recipe.launch
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
