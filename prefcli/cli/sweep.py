"""A grid of runs of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prefcli.cli.recipe_command import (
    Json,
    RecipeArgument,
    check_method,
    choose_method,
    command_app,
    open_recipe,
    print_json,
    write_file,
)
from prefcli.console import document, keep_stdout_for_json, say
from prefcli.errors import ExitCode
from prefcli.recipe import load

if TYPE_CHECKING:
    from prefcli.launcher.sweep import Trial

_PAGE = "sweep.html"
Best = Literal["accuracy", "margin", "eval loss", "perplexity"]
_HIGHEST: tuple[Best, ...] = ("accuracy", "margin")
"""Metrics whose highest value is the best."""

app = command_app()


@app.command()
def sweep(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE[,VALUE]...",
            help="Settings of the runs; several values are a dimension of the grid.",
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="METHOD[,METHOD]...", help="Methods to run; default: the recipe's."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            metavar="FOLDER",
            help="The folder of all runs; default: output_dir of the recipe, with -sweep.",
        ),
    ] = None,
    best: Annotated[
        Best | None, typer.Option("--best", help="Sort the runs by this held-out metric.")
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the commands, for a job array; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a grid of settings, and compare the runs.

    One run follows the other. A key without a dot is an option of each method: beta=0.05,0.1 is
    dpo.beta and ipo.beta. The rows are prepared once, and the reference is scored once. Finished
    runs are skipped, so the same command continues a sweep.
    """
    keep_stdout_for_json(as_json)
    from prefcli.launcher.sweep import run_trials, trials_of

    loaded = open_recipe(recipe, None, as_json=as_json)
    methods = method.split(",") if method else [choose_method(loaded, None).name]
    for name in methods:
        check_method(name)
    written = loaded.places.keys.keys()
    trials = [
        trial.with_sections(
            methods=loaded.recipe.methods, precomputes=("reference", "precompute") not in written
        )
        for trial in trials_of(settings, methods)
    ]
    folder = output_dir or Path(f"{loaded.recipe.output_dir}-sweep")
    for trial in trials:  # all mistakes before the first run
        load(recipe, trial.words(recipe, folder)[2:])
    if only_print:
        document("\n".join(trial.command(recipe, folder) for trial in trials))
        return
    folder.mkdir(parents=True, exist_ok=True)
    codes = {trial.name: code for trial, code in run_trials(trials, recipe, folder, say)}
    rows = _results(trials, folder, best)
    if as_json:
        print_json({"folder": str(folder), "runs": rows, "exit_codes": codes})
    failed = [code for code in codes.values() if code not in (ExitCode.DONE, ExitCode.DIVERGED)]
    raise typer.Exit(failed[-1] if failed else ExitCode.DONE)


def _results(trials: list[Trial], folder: Path, best: Best | None) -> list[dict[str, Any]]:
    """Print a table of the runs, and write their comparison; return the rows of the table."""
    from prefcli.report.compare_page import compare_page
    from prefcli.report.run_data import read_run
    from prefcli.report.run_list import run_row, table

    runs = [read_run(folder / t.name) for t in trials if (folder / t.name / "run.json").is_file()]
    rows = [run_row(run, folder) for run in runs]
    if not rows:
        return []
    if best is not None:
        sign = -1 if best in _HIGHEST else 1
        rows.sort(key=lambda row: float("inf") if row[best] is None else sign * row[best])
    say(*table(rows))
    if best is not None and rows[0][best] is not None:
        say(f"best {best} on held-out rows: {rows[0]['run']}")
    if len(runs) > 1:
        write_file(folder / _PAGE, compare_page(runs))
    return rows
