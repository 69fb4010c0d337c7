"""A grid of runs of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prefcli.cli.recipe_command import (
    Json,
    Offline,
    RecipeArgument,
    check_context,
    check_method,
    check_writable,
    choose_method,
    command_app,
    folder_of_runs,
    heavy_half,
    open_recipe,
    print_json,
    refuse_without_effect,
    resolve_offline,
    write_file,
)
from prefcli.console import document, keep_stdout_for_json, say, warn
from prefcli.errors import STOPPED, ExitCode, PrefcliError, RecipeError
from prefcli.methods import Method
from prefcli.recipe import Loaded, Recipe, load
from prefcli.text import counted

if TYPE_CHECKING:
    from prefcli.launcher.trials import Trial
    from prefcli.report.run_data import Run

_PAGE = "sweep.html"
Best = Literal["accuracy", "margin", "eval loss", "perplexity"]
_IN_UNITS: tuple[Best, ...] = ("margin", "eval loss")
"""Metrics whose unit depends on the method and its options."""

Settings = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE[,VALUE]...",
        help="Settings of the runs; several values are a dimension of the grid, and LOW..HIGH a "
        "range for --random.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="METHOD[,METHOD]...", help="Methods to run; default: the recipe's."
    ),
]
RandomDraws = Annotated[
    int | None,
    typer.Option("--random", metavar="N", min=1, help="Draw N runs at random instead of all."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of --random.")]
SweepFolder = Annotated[
    str | None,
    typer.Option(
        "--output-dir",
        metavar="FOLDER",
        help="The folder of all runs; default: output_dir of the recipe, with -sweep.",
    ),
]

app = command_app()


@app.command()
def sweep(
    recipe: RecipeArgument,
    settings: Settings,
    method: Methods = None,
    output_dir: SweepFolder = None,
    random: RandomDraws = None,
    seed: Seed = 0,
    jobs: Annotated[
        int,
        typer.Option("--jobs", metavar="N", min=1, help="Runs at once, which share the GPUs."),
    ] = 1,
    best: Annotated[
        Best | None, typer.Option("--best", help="Sort the runs by this held-out metric.")
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the commands, and run nothing.")
    ] = False,
    only_compare: Annotated[
        bool,
        typer.Option("--compare", help="Run nothing; compare what has run, e.g. in a job array."),
    ] = False,
    no_kl: Annotated[
        bool,
        typer.Option("--no-kl", help="Load no model at the end to measure the KL that runs lack."),
    ] = False,
    allow_unusual: Annotated[
        bool, typer.Option("--allow-unusual", help="Pass --allow-unusual to the runs.")
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Run a grid of settings, and compare the runs.

    A key without a dot is an option of each method: beta=0.05,0.1 is dpo.beta and ipo.beta. The
    rows are prepared once, and the reference is scored once. Runs that have finished, or that a
    health rule has stopped, are skipped, so the same command continues a sweep.
    """
    keep_stdout_for_json(as_json)
    loaded = open_recipe(recipe, None, as_json=as_json)
    trials, folder = open_sweep(loaded, settings, method, output_dir, random, seed)
    if best in _IN_UNITS and len({_units(trial) for trial in trials}) > 1:
        raise RecipeError(
            f"--best {best}: its unit depends on the method and its options, which differ between "
            "the runs",
            code="RCP025",
            hint="choose accuracy or perplexity",
        )
    flags = ["--allow-unusual"] * allow_unusual + ["--offline"] * offline
    if only_print:
        refuse_without_effect(["--compare"] if only_compare else [], "--print", "remove it")
        document("\n".join(trial.command(recipe, folder, flags) for trial in trials))
        return
    check_writable(folder / _PAGE, "--output-dir")
    codes: dict[str, int] = {}
    if not only_compare:
        resolve_offline(loaded, offline=offline)
        codes = _run(trials, recipe, folder, flags, jobs)
    was_stopped = any(code in STOPPED for code in codes.values())
    rows, chosen = _results(trials, folder, best, measures_kl=not (no_kl or was_stopped))
    if was_stopped:
        say("sweep: stopped; run the same command again to continue")
    if as_json:
        print_json({"folder": str(folder), "runs": rows, "best": chosen, "exit_codes": codes})
    failed = [code for code in codes.values() if code not in (ExitCode.DONE, ExitCode.DIVERGED)]
    raise typer.Exit(failed[-1] if failed else ExitCode.DONE)


def open_sweep(
    loaded: Loaded,
    settings: Sequence[str],
    method: str | None,
    output_dir: str | None,
    random: int | None,
    seed: int,
) -> tuple[list[Trial], Path]:
    """Return the runs of a sweep and their folder. Raises RecipeError for a mistake in any run."""
    from prefcli.launcher.trials import draws, grid

    methods = [choose_method(loaded, None).name] if method is None else method.split(",")
    for name in methods:
        check_method(name)
    trials = grid(settings, methods) if random is None else draws(settings, methods, random, seed)
    precomputes = ("reference", "precompute") not in loaded.places.keys
    trials = [
        trial.with_sections(methods=loaded.recipe.methods, precomputes=precomputes)
        for trial in trials
    ]
    folder = folder_of_runs(loaded.recipe, output_dir, "sweep")
    for trial in trials:
        check_context(load(loaded.places.source, trial.words(loaded.places.source, folder)[2:]))
    return trials, folder


def _units(trial: Trial) -> tuple[str, ...]:
    own = (override for override in trial.overrides if override.startswith(f"{trial.method}."))
    return trial.method, *own


def _run(
    trials: Sequence[Trial], recipe: str, folder: Path, flags: Sequence[str], jobs: int
) -> dict[str, int]:
    """Run the trials, and return the exit code of each that has ended."""
    from prefcli.launcher.sweep import Sweep, run_trials
    from prefcli.launcher.sweep_view import live_table

    gpus: Sequence[str] = ()
    if jobs > 1:
        with heavy_half():
            from prefcli.model.device import visible_gpus

        gpus = visible_gpus()
    todo = Sweep(trials, recipe, folder, flags, jobs, gpus)
    with live_table(trials, folder) as redraw:
        return {trial.name: code for trial, code in run_trials(todo, say, redraw)}


def _with_kl(runs: Sequence[Run], folder: Path, *, measures_kl: bool) -> list[Run]:
    """Return the runs with the KL that those without the reference in memory lack."""
    from prefcli.launcher.sweep_kl import Measure, with_kl

    def measure(recipe: Recipe, method: Method, models: Sequence[str]) -> list[float | None]:
        with heavy_half():
            from prefcli.evaluation.final_kl import final_kl

        say(f"sweep: measuring the KL to the reference of {counted(len(models), 'run')}")
        return final_kl(recipe, method, models)

    chosen: Measure | None = measure if measures_kl else None
    try:
        return with_kl(runs, folder, chosen)
    except PrefcliError as error:
        warn(f"the KL was not measured: {error.problems[0]}")
        return with_kl(runs, folder, None)


def _results(
    trials: Sequence[Trial], folder: Path, best: Best | None, *, measures_kl: bool
) -> tuple[list[dict[str, Any]], str | None]:
    """Print a table of the runs, and write their comparison; return its rows and the best run."""
    from prefcli.launcher.sweep import run_in
    from prefcli.report.best_run import rank_runs
    from prefcli.report.compare_page import compare_page
    from prefcli.report.run_list import run_row, table

    runs: list[Run] = [run for trial in trials if (run := run_in(folder / trial.name)) is not None]
    if not runs:
        say(f"{folder} has no runs yet")
        return [], None
    runs = _with_kl(runs, folder, measures_kl=measures_kl)
    ranking = None
    if best is not None:
        ranking = rank_runs(runs, best)
        lines = list(ranking.lines([run.name for run in runs]))
        runs = [runs[at] for at in ranking.order]
    rows = [run_row(run, folder) for run in runs]
    say(*table(rows, omit=("method", "started")))
    if ranking is not None:
        say(*lines)
    if len(runs) > 1:
        write_file(folder / _PAGE, compare_page(runs, best=best))
    return rows, None if ranking is None or ranking.best is None else runs[0].name
