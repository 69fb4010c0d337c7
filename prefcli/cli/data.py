"""A recipe's data: audited, or prepared before a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Offline,
    Overrides,
    RecipeArgument,
    check_writable,
    checked_output,
    choose_method,
    command_app,
    heavy_half,
    open_recipe,
    print_json,
    refuse_without_effect,
    resolve_offline,
    write_file,
)
from prefcli.console import say, stream
from prefcli.errors import ExitCode, RecipeError
from prefcli.text import did_you_mean

if TYPE_CHECKING:
    from prefcli.data.audit_report import DataReport

_NEAR_DUPLICATES = "near-duplicates"
_DROPPED = ("contradicted", "easy", "hard", _NEAR_DUPLICATES)
"""Kinds of rows that can be dropped."""
_EXAMPLES = 10
"""Rows of each kind on the page."""

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
    scored: Annotated[
        list[str] | None,
        typer.Option(
            "--scored",
            metavar="MODEL|RUN",
            help="Also judge the pairs by this model's rewards: swapped labels, easy and hard "
            "pairs. Can be repeated; a run skips the prompts that it was trained on.",
        ),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            "--reward-model",
            metavar="MODEL",
            help="Judge the pairs by a sequence classification model instead of --scored.",
        ),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop",
            metavar="KIND[,KIND]...",
            help=f"Rows that --write-clean drops: {', '.join(_DROPPED)}.",
        ),
    ] = None,
    swap: Annotated[
        Literal["contradicted"] | None,
        typer.Option("--swap", help="Rows whose chosen and rejected --write-clean swaps."),
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(
            "--write-clean",
            metavar="FILE",
            help="Write the rows of data.train after --drop and --swap: .jsonl or .parquet.",
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write the audit as a page.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Audit the rows of a run: counts, lengths, swapped pairs.

    Exits with 4 if more rows have a problem than data.checks allows, as a run would.
    """
    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    is_scored = bool(scored) or reward_model is not None
    if scored and reward_model is not None:
        refuse_without_effect(["--scored"], "--reward-model", "remove one of them")
    dropped = _dropped_kinds(drop, swap, is_scored=is_scored)
    output = _clean_file(clean, {"--drop": drop, "--swap": swap}, sample)
    resolve_offline(loaded, offline=offline)
    if html is not None:
        check_writable(html, "--html")
    with heavy_half(loaded):
        from prefcli.data.example_rows import example_rows, rows_of
        from prefcli.preflight.pretokenize import data_report

        report = data_report(loaded.recipe, chosen, sample)
        train = report.datasets.train
        kinds: dict[str, Any] = {_NEAR_DUPLICATES: report.diversity.near_duplicates}
        quality = None
        if is_scored:
            from prefcli.evaluation.pair_quality import KINDS, judge_pairs

            quality = judge_pairs(
                loaded.recipe, chosen, train, models=scored or (), reward_model=reward_model
            )
            kinds |= {kind: quality.rows(kind) for kind in KINDS}
        rows, examples = {}, {}
        if html is not None:
            rows = example_rows(loaded.recipe, chosen, report.datasets)
            examples = {kind: rows_of(train, some[:_EXAMPLES]) for kind, some in kinds.items()}
        written = None
        if output is not None:
            from prefcli.data.clean_rows import write_clean

            written = write_clean(
                loaded.recipe,
                train,
                output,
                drop={kind: kinds[kind] for kind in dropped},
                swap=kinds[swap] if swap is not None else (),
            )
    model = loaded.recipe.model
    say(f"data of prefcli {chosen.name}: tokens of {model.tokenizer or model.name_or_path}")
    _print(report)
    say(*(quality.lines() if quality is not None else ()))
    say(*(written.lines() if written is not None else ()))
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
        "pairs": None if quality is None else quality.as_dict(),
        "clean": None if written is None else vars(written),
    }
    if html is not None:
        from prefcli.report.data_page import data_page

        write_file(Path(html), data_page(document, rows, examples), option="--html")
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


def _dropped_kinds(drop: str | None, swap: str | None, *, is_scored: bool) -> list[str]:
    """Return the kinds of rows of --drop. Raises RecipeError."""
    kinds = [] if drop is None else drop.split(",")
    for kind in kinds:
        if kind not in _DROPPED:
            raise RecipeError(
                f"--drop {drop}: {kind!r} is not a kind of rows",
                code="RCP033",
                hint=did_you_mean(kind, _DROPPED) or f"write some of {', '.join(_DROPPED)}",
            )
    if swap is not None and swap in kinds:
        raise RecipeError(
            f"--drop and --swap both name {swap}",
            code="RCP033",
            hint="name it in one of them",
        )
    named = [kind for kind in (*kinds, swap) if kind not in (None, _NEAR_DUPLICATES)]
    if named and not is_scored:
        raise RecipeError(
            f"{', '.join(map(str, named))}: a model finds these rows, and none is named",
            code="RCP044",
            hint="name one with --scored or --reward-model",
        )
    return kinds


def _clean_file(
    name: str | None, changes: dict[str, str | None], sample: int | None
) -> Path | None:
    """Return the path of --write-clean. Raises RecipeError."""
    given = [option for option, value in changes.items() if value is not None]
    if name is None:
        refuse_without_effect(given, "an audit", "add --write-clean FILE")
        return None
    if not given:
        refuse_without_effect(["--write-clean"], "all rows", f"add {' or '.join(changes)}")
    if sample is not None:
        refuse_without_effect(["--write-clean"], "a sample", "remove --sample")
    return checked_output(name, "--write-clean")


def _print(report: DataReport) -> None:
    from prefcli.report.data_page import text_histograms

    for split in report.datasets.splits:
        histograms = text_histograms(split.lengths.as_dict(), ascii_only=prints_ascii_only())
        say(*split.lines(), "", *(f"  {line}" for line in histograms), "")
    say(*(f"train: {line}" for line in report.diversity.lines()))
    say(*report.method_notes)
    if report.is_sample:
        say("note: a sample shows few of the repeated rows and shared prompts")
    for warning in report.warnings:
        say(f"warning: {warning}")


def prints_ascii_only() -> bool:
    return (stream().encoding or "").lower() not in ("utf-8", "utf8")
