"""Job files for Slurm."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    Overrides,
    RecipeArgument,
    choose_method,
    command_app,
    located,
    open_recipe,
    refuse_without_effect,
)
from prefcli.cli.sweep import RandomDraws, Seed, SweepFolder, open_sweep
from prefcli.console import document
from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.slurm import DEFAULT_GRACE

app = command_app()


@app.command()
def slurm(
    context: typer.Context,
    recipe: RecipeArgument,
    time: Annotated[
        str, typer.Option(help="Time limit: 04:00:00, 1-12 or 90.", metavar="HH:MM:SS")
    ],
    overrides: Overrides = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="|".join([*METHODS, "check-sft"]),
            help="What the job runs; required if the recipe has several methods.",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs per node; default: launch.processes, or 1. 0: CPUs.", metavar="N"
        ),
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="Cores per node.", metavar="N")
    ] = None,
    mem: Annotated[
        str | None, typer.Option(help="Memory per node, e.g. 200G.", metavar="SIZE")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            help="Any other sbatch option, e.g. --sbatch=--constraint=a100.", metavar="OPTION"
        ),
    ] = None,
    grace: Annotated[
        int,
        typer.Option(
            min=1,
            max=65535,
            help="Seconds before the time limit at which the run saves and requeues.",
            metavar="N",
        ),
    ] = DEFAULT_GRACE,
    max_requeues: Annotated[
        int,
        typer.Option(min=0, help="Maximum number of requeues; 0 disables requeueing."),
    ] = 20,
    module: Annotated[
        list[str] | None, typer.Option(help="Environment module to load first.", metavar="NAME")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="Shell line to run first.", metavar="LINE")
    ] = None,
    venv: Annotated[
        str | None, typer.Option(help="Virtual environment with prefcli.", metavar="FOLDER")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Container image with prefcli.", metavar="IMAGE")
    ] = None,
    container_runtime: Annotated[
        str | None,
        typer.Option(help="Container runtime; default: pyxis.", metavar="pyxis|apptainer"),
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder to mount in the container, in addition to the job's own.",
            metavar="SOURCE:TARGET",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="The nodes have no network; run `prefcli download` first."),
    ] = False,
    allow_unusual: Annotated[
        bool, typer.Option("--allow-unusual", help="Pass --allow-unusual to the run.")
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="A job array with one task for each run of `prefcli sweep` with these settings.",
        ),
    ] = False,
    output_dir: SweepFolder = None,
    random: RandomDraws = None,
    seed: Seed = 0,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Tasks of the array that run at once.", metavar="N"),
    ] = None,
) -> None:
    """Print a job file for a Slurm cluster.

    For example: prefcli slurm dpo.yaml --time 4:00:00 > dpo.sbatch

    Nodes and GPUs come from the recipe's launch section. Slurm signals prefcli before the time
    limit; the run saves a checkpoint, exits with 75, is requeued and resumes.
    """
    from prefcli.slurm.sbatch import SbatchOptions, sbatch_file

    options = SbatchOptions.from_parameters(context.params)
    made_by = ["prefcli", *sys.argv[1:]]
    if sweep:
        loaded = open_recipe(recipe, None)
        trials, folder = open_sweep(loaded, overrides or [], method, output_dir, random, seed)
        first, *_ = tasks = [trial.words(recipe, folder) for trial in trials]
        text = sbatch_file(
            load(recipe, first[2:]).recipe, first[0], first[1:], options, made_by, tasks=tasks
        )
        document(text.rstrip("\n"))
        return
    given = {"--output-dir": output_dir, "--random": random, "--seed": seed or None, "--jobs": jobs}
    refuse_without_effect(
        [name for name, value in given.items() if value is not None], "one run", "add --sweep"
    )
    loaded = open_recipe(recipe, overrides)
    command = method if method == "check-sft" else choose_method(loaded, method).name
    refuse_without_effect(
        ["--allow-unusual"] if allow_unusual and command == "check-sft" else [],
        command,
        "remove it",
    )
    arguments = [recipe, *(overrides or [])]
    with located(loaded):
        text = sbatch_file(loaded.recipe, command, arguments, options, made_by)
    document(text.rstrip("\n"))
