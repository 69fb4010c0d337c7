"""A job file for Slurm."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prefcli.cli.app import LocatedError, Overrides, RecipeArgument, app, load_recipe, section
from prefcli.console import document
from prefcli.errors import PrefcliError, RecipeError
from prefcli.methods import METHODS

_COMMANDS = (*METHODS, "check-sft")


@app.command()
def slurm(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help=f"One of {', '.join(_COMMANDS)}.")
    ],
    recipe: RecipeArgument,
    time: Annotated[
        str, typer.Option(help="The job's limit: 04:00:00, 1-12 or 90.", metavar="HH:MM:SS")
    ],
    overrides: Overrides = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="On each node; left out, launch.processes, or one. 0: on CPUs.", metavar="N"
        ),
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="Cores on each node.", metavar="N")
    ] = None,
    mem: Annotated[
        str | None, typer.Option(help="Memory on each node, as in 200G.", metavar="SIZE")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            help="Any other option of sbatch, as in --sbatch=--constraint=a100.", metavar="OPTION"
        ),
    ] = None,
    grace: Annotated[
        int,
        typer.Option(
            min=1,
            max=65535,
            help="Seconds before the limit at which prefcli is told to save.",
            metavar="N",
        ),
    ] = 300,
    max_requeues: Annotated[
        int,
        typer.Option(min=0, help="Starts after the first; 0: never back into the queue."),
    ] = 20,
    module: Annotated[
        list[str] | None, typer.Option(help="To load before, by `module load`.", metavar="NAME")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="A line of shell to run before.", metavar="LINE")
    ] = None,
    venv: Annotated[
        str | None, typer.Option(help="Virtual environment that has prefcli.", metavar="FOLDER")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Image that has prefcli.", metavar="IMAGE")
    ] = None,
    container_runtime: Annotated[
        str | None, typer.Option(help="What runs it; pyxis, left out.", metavar="pyxis|apptainer")
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder for the container to see, beside the one the job starts in.",
            metavar="SOURCE:TARGET",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="The nodes have no network; `prefcli download` first.")
    ] = False,
    allow_unusual: Annotated[
        bool, typer.Option("--allow-unusual", help="Passed on to the run.")
    ] = False,
) -> None:
    """Print a job file: `prefcli slurm dpo r.yaml --time 4:00:00 > dpo.sbatch`.

    Nodes and GPUs are those of the recipe's launch section. Before the limit prefcli is told to
    save; a run that ends with 75, pre-empted, goes back into the queue and on from there.
    """
    if method not in _COMMANDS:
        raise RecipeError(f"{method}: no such command", hint=f"one of {', '.join(_COMMANDS)}")
    if allow_unusual and method not in METHODS:
        raise RecipeError(f"--allow-unusual has no effect on {method}")
    loaded = load_recipe(recipe, overrides)
    if method in METHODS:
        section(loaded, method)
    # Light, but it imports Jinja, which every command's start-up would pay for.
    from prefcli.slurm.sbatch import SbatchOptions, sbatch_file

    wishes = SbatchOptions(
        time=time,
        grace=grace,
        max_requeues=max_requeues,
        gpus=gpus,
        partition=partition,
        account=account,
        qos=qos,
        mem=mem,
        cpus_per_task=cpus_per_task,
        sbatch=sbatch or (),
        modules=module or (),
        setup=setup or (),
        venv=venv,
        container=container,
        runtime=container_runtime,
        mounts=mount or (),
        offline=offline,
        flags=["--allow-unusual"] if allow_unusual else [],
    )
    made_by = ["prefcli", *sys.argv[1:]]
    try:
        text = sbatch_file(loaded.recipe, method, [recipe, *(overrides or [])], wishes, made_by)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    document(text.rstrip("\n"))
