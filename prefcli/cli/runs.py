"""A table of runs, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document

app = command_app()


@app.command()
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs in a folder with their last evaluation."""
    from prefcli.report.run_list import find_runs, run_row, table

    rows = [run_row(run, folder) for run in find_runs(folder)]
    if as_json:
        print_json(rows)
    elif rows:
        document("\n".join(table(rows)))
    else:
        document(f"no runs in {folder}")
