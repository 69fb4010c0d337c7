"""What became of runs, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.app import Json, app, print_json
from prefcli.console import is_main_process, keep_stdout_for_json, say
from prefcli.errors import RecipeError

_SIDE_BY_SIDE = "comparison.html"


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
            help=f"The page; left out: report.html in the run, or ./{_SIDE_BY_SIDE} for several.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What became of a run, in words and as one page; of several runs, side by side."""
    keep_stdout_for_json(as_json)
    from prefcli.report.compare_page import compare_page, differing, short_names  # border
    from prefcli.report.run_data import read_run
    from prefcli.report.run_page import run_page
    from prefcli.report.verdict import as_document, verdict

    found = list({each.path.resolve(): each for each in map(read_run, runs)}.values())
    verdicts = [verdict(run) for run in found]
    alone = len(found) == 1
    for name, run, said in zip(short_names(found), found, verdicts, strict=True):
        # What a run measured last that did not come to its end is not its end.
        at = "" if said.state == "finished" else f" (step {said.steps[1]})"
        say(f"{name}: {run.method}: {said.title}")
        say(*(f"  {gain}{at}" for gain in said.gains))
        say(*(f"  {line}" for words in said.words for line in words.splitlines()))
    settings = dict(differing(found))
    if not alone:
        say("settings that differ:" if settings else "no setting differs")
        say(*(f"  {key}: {' | '.join(values)}" for key, values in settings.items()))
    page = run_page(found[0]) if alone else compare_page(found)
    path = Path(html or (found[0].path / "report.html" if alone else _SIDE_BY_SIDE))
    _write(path, page)
    if as_json:
        documents = [as_document(run, said) for run, said in zip(found, verdicts, strict=True)]
        print_json({"page": str(path), "runs": documents, "settings": settings})


def _write(path: Path, page: str) -> None:
    if not is_main_process():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RecipeError(
            f"{path} can't be written: {error.strerror}", hint="name another file with --html"
        ) from None
    say(f"written to {path}")
