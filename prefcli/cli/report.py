"""Reports of runs, without torch."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli.recipe_command import Json, check_writable, command_app, print_json, write_file
from prefcli.console import keep_stdout_for_json, say

if TYPE_CHECKING:
    from prefcli.report.run_data import Run

_COMPARISON = "comparison.html"
_WATCH_SECONDS = 10

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
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help=f"Rewrite the page every {_WATCH_SECONDS} seconds until the runs have ended; it "
            "reloads itself in a browser.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Summarize a run as one page, or compare several."""
    keep_stdout_for_json(as_json)
    from prefcli.report.compare_page import differing, short_names
    from prefcli.report.run_list import run_row, table
    from prefcli.report.verdict import as_document, verdict

    records = _read(runs)
    path = Path(html or (records[0].path / "report.html" if len(records) == 1 else _COMPARISON))
    check_writable(path, "--html")
    if watch:
        records = _watch(runs, records, path)
    verdicts = [verdict(run) for run in records]
    single = len(records) == 1
    for name, run, summary in zip(short_names(records), records, verdicts, strict=True):
        # The last evaluation of an unfinished run is not its end.
        at = "" if summary.state == "finished" else f" (step {summary.eval_steps[1]})"
        say(f"{name}: {run.method}: {summary.title}")
        if single:
            say(*(f"  {change}{at}" for change in summary.changes))
        say(*(f"  {line}" for detail in summary.details for line in detail.splitlines()))
    settings = dict(differing(records))
    if not single:
        rows = [
            {**run_row(run, run.path.parent), "run": name}
            for name, run in zip(short_names(records), records, strict=True)
        ]
        say(*table(rows, omit=("method", "started")))
        say("settings that differ:" if settings else "no setting differs")
        say(*(f"  {key}: {' | '.join(values)}" for key, values in settings.items()))
    write_file(path, _page(records), option="--html")
    if as_json:
        documents = [
            as_document(run, summary) for run, summary in zip(records, verdicts, strict=True)
        ]
        print_json({"page": str(path), "runs": documents, "settings": settings})


def _read(runs: list[str]) -> list[Run]:
    from prefcli.report.run_data import read_run

    return list({run.path.resolve(): run for run in map(read_run, runs)}.values())


def _page(records: list[Run], refresh: int | None = None) -> str:
    from prefcli.report.compare_page import compare_page
    from prefcli.report.run_page import run_page

    if len(records) == 1:
        return run_page(records[0], refresh=refresh)
    return compare_page(records, refresh=refresh)


def _watch(runs: list[str], records: list[Run], path: Path) -> list[Run]:
    """Rewrite the page until the runs end, or until Ctrl-C; return the runs as they are then.

    A browser never reads half a page.
    """
    from prefcli.checkpoints.atomic import write_text

    page = ""
    with suppress(KeyboardInterrupt):
        while any(run.status == "running" for run in records):
            if not page:
                say(f"watching until the end of the run or Ctrl-C; open {path} in a browser")
            if page != (page := _page(records, _WATCH_SECONDS)):
                write_text(path, page)
            time.sleep(_WATCH_SECONDS)
            records = _read(runs)
    return records
