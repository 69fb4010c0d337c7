"""A recipe's data: audited, or prepared before a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Offline,
    Overrides,
    RecipeArgument,
    check_writable,
    choose_method,
    command_app,
    heavy_half,
    open_recipe,
    print_json,
    resolve_offline,
    write_file,
)
from prefcli.console import say, stream
from prefcli.errors import ExitCode

if TYPE_CHECKING:
    from prefcli.data.audit_report import DataReport

app = command_app()


@app.command()
def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: MethodOption = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=1, metavar="N", help="Read N random rows of each source only."
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write the audit as a page.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Audit the rows of a run: counts, lengths, problems.

    Exits with 4 if more rows have a problem than data.checks allows, as a run would.
    """
    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    resolve_offline(loaded, offline=offline)
    if html is not None:
        check_writable(html, "--html")
    with heavy_half(loaded):
        from prefcli.data.example_rows import example_rows
        from prefcli.preflight.pretokenize import data_report

        report = data_report(loaded.recipe, chosen, sample)
        rows = example_rows(loaded.recipe, chosen, report.datasets) if html is not None else {}
    model = loaded.recipe.model
    say(f"data of prefcli {chosen.name}: tokens of {model.tokenizer or model.name_or_path}")
    _print(report)
    problems = [loaded.locate(problem) for problem in report.errors]
    code = ExitCode.DATA if problems else ExitCode.DONE
    document = {
        "exit_code": int(code),
        "problems": [problem.as_dict() for problem in problems],
        "recipe": recipe,
        "method": chosen.name,
        "model": model.name_or_path,
        "sampled": report.is_sample,
        **report.as_dict(),
    }
    if html is not None:
        from prefcli.report.data_page import data_page

        write_file(Path(html), data_page(document, rows), option="--html")
    if as_json:
        print_json(document)
    for problem in problems:
        say(f"error: {problem}")
    raise typer.Exit(code)


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: MethodOption = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read, audit and tokenize the rows before a job.

    The run of the job reuses them.

    The rows are cached in datasets' cache (HF_DATASETS_CACHE), for every run with the same rows,
    tokenizer and limits. Needs no GPU, and only the tokenizer and configuration of the model.
    """
    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    resolve_offline(loaded, offline=offline)
    with heavy_half(loaded):
        from prefcli.preflight.pretokenize import pretokenize

        ahead = pretokenize(loaded.recipe, chosen)
    for split in ahead.inputs.splits:
        say(*split.lines())
    say(*ahead.resolved)
    for warning in ahead.warnings:
        say(f"warning: {warning}")
    say(*ahead.lines())
    if as_json:
        print_json({"exit_code": 0, "recipe": recipe, "method": chosen.name, **ahead.as_dict()})


def _print(report: DataReport) -> None:
    from prefcli.report.data_page import text_histograms

    for split in report.datasets.splits:
        histograms = text_histograms(split.lengths.as_dict(), ascii_only=prints_ascii_only())
        say(*split.lines(), "", *(f"  {line}" for line in histograms), "")
    say(*report.method_notes)
    if report.is_sample:
        say("note: a sample shows few of the repeated rows and shared prompts")
    for warning in report.warnings:
        say(f"warning: {warning}")


def prints_ascii_only() -> bool:
    return (stream().encoding or "").lower() not in ("utf-8", "utf8")
