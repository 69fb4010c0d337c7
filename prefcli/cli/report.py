"""Reports of runs, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json, write_file
from prefcli.console import keep_stdout_for_json, say

_COMPARISON = "comparison.html"

app = command_app()


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, each an output_dir.")
    ],
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help=f"The page to write; default: report.html in the run, or ./{_COMPARISON} for "
            "several runs.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Summarize a run as one page, or compare several."""
    keep_stdout_for_json(as_json)
    from prefcli.report.compare_page import compare_page, differing, short_names
    from prefcli.report.run_data import read_run
    from prefcli.report.run_page import run_page
    from prefcli.report.verdict import as_document, verdict

    records = list({run.path.resolve(): run for run in map(read_run, runs)}.values())
    verdicts = [verdict(run) for run in records]
    single = len(records) == 1
    for name, run, summary in zip(short_names(records), records, verdicts, strict=True):
        # The last evaluation of an unfinished run is not its end.
        at = "" if summary.state == "finished" else f" (step {summary.eval_steps[1]})"
        say(f"{name}: {run.method}: {summary.title}")
        say(*(f"  {change}{at}" for change in summary.changes))
        say(*(f"  {line}" for detail in summary.details for line in detail.splitlines()))
    settings = dict(differing(records))
    if not single:
        say("settings that differ:" if settings else "no setting differs")
        say(*(f"  {key}: {' | '.join(values)}" for key, values in settings.items()))
    page = run_page(records[0]) if single else compare_page(records)
    path = Path(html or (records[0].path / "report.html" if single else _COMPARISON))
    write_file(path, page, option="--html")
    if as_json:
        documents = [
            as_document(run, summary) for run, summary in zip(records, verdicts, strict=True)
        ]
        print_json({"page": str(path), "runs": documents, "settings": settings})
