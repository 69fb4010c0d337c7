"""The data of a recipe, without a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli.app import (
    Json,
    LocatedError,
    Offline,
    Overrides,
    RecipeArgument,
    app,
    load_recipe,
    print_json,
    resolve_offline,
    section,
)
from prefcli.console import is_main_process, keep_stdout_for_json, say, stream
from prefcli.errors import ExitCode, PrefcliError, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe import Loaded

if TYPE_CHECKING:
    from prefcli.data.audit_report import DataReport


@app.command()
def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="|".join(METHODS),
            help="Whose rows; left out, those of the recipe's first method section.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", min=1, metavar="N", help="Look at N rows of each source, drawn by the seed."
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write it as one page, too.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Audit the rows a run would train on: counts, lengths, what is lost, what is doubtful.

    Exit code 4 where a finding is in more rows than data.checks allows, as for a run.
    """
    keep_stdout_for_json(as_json)
    loaded = load_recipe(recipe, overrides)
    if method is not None and method not in METHODS:
        raise RecipeError(f"--method {method}: no such method", hint=f"one of {', '.join(METHODS)}")
    chosen = section(loaded, method or _first_method(loaded))
    resolve_offline(loaded, offline=offline)
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()
    from prefcli.data.audit_report import data_report

    try:
        report = data_report(loaded.recipe, chosen, sample)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    others = [name for name in loaded.recipe.methods if name != chosen.name]
    other = f" (--method {'|'.join(others)} for others)" if others else ""
    say(f"data of prefcli {chosen.name}{other}: tokens of {loaded.recipe.model.name_or_path}")
    _print(report)
    problems = [loaded.locate(problem) for problem in report.errors]
    code = ExitCode.DATA if problems else ExitCode.DONE
    document = {
        "exit_code": int(code),
        "problems": [problem.as_dict() for problem in problems],
        "recipe": recipe,
        "method": chosen.name,
        "model": loaded.recipe.model.name_or_path,
        "sampled": report.sampled,
        **report.as_dict(),
    }
    if html is not None:
        _write_page(html, document)
    if as_json:
        print_json(document)
    for problem in problems:
        say(f"error: {problem}")
    raise typer.Exit(code)


@app.command()
def prepare(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="|".join(METHODS))],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read, audit and tokenise the rows ahead of a job, as its run will find them.

    They are kept in datasets' cache (HF_DATASETS_CACHE), for each run of the same rows, tokenizer
    and limits. Needs no GPU, and nothing of the model but its tokenizer and config.
    """
    keep_stdout_for_json(as_json)
    if method not in METHODS:
        raise RecipeError(f"prepare {method}: no such method", hint=f"one of {', '.join(METHODS)}")
    loaded = load_recipe(recipe, overrides)
    chosen = section(loaded, method)
    resolve_offline(loaded, offline=offline)
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()
    from prefcli.preflight.pretokenize import pretokenize

    try:
        ahead = pretokenize(loaded.recipe, chosen)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    for split in ahead.inputs.splits:
        say(*split.lines())
    say(*ahead.said)
    for warning in ahead.inputs.warnings:
        say(f"warning: {warning}")
    say(*ahead.lines())
    if as_json:
        print_json({"exit_code": 0, "recipe": recipe, "method": method, **ahead.as_dict()})


def _first_method(loaded: Loaded) -> str:
    """The section that stands first in the file."""
    keys = loaded.places.keys
    written = [name for name in loaded.recipe.methods if (name,) in keys]
    # An override alone can make a section, too.
    return min(written, key=lambda name: keys[name,], default=next(iter(loaded.recipe.methods)))


def _print(report: DataReport) -> None:
    from prefcli.report.text_histogram import pictures  # border

    for split in report.inputs.splits:
        drawn = pictures(split.lengths.as_dict(), ascii_only=_ascii_only())
        say(*split.lines(), "", *(f"  {line}" for line in drawn), "")
    say(*report.said)
    if report.sampled:
        say("note: in a sample, few of the repeated rows and shared prompts are seen")
    for warning in report.warnings:
        say(f"warning: {warning}")


def _ascii_only() -> bool:
    return (stream().encoding or "").lower() not in ("utf-8", "utf8")


def _write_page(path: str, document: dict[str, Any]) -> None:
    from prefcli.report.data_page import data_page  # border

    if not is_main_process():
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(data_page(document), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--html {path}: {error.strerror}") from None
    say(f"written to {path}")
