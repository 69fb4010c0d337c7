"""Commands that run a model without training it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

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
)
from prefcli.console import keep_stdout_for_json, say
from prefcli.errors import ExitCode, PrefcliError, RecipeError
from prefcli.recipe.offline import go_offline


@app.command("check-sft")
def check_sft(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Perplexity of the chosen responses under the starting model: fit for preference tuning?

    Exit code 0 if it is at most check_sft.max_perplexity, else 3.
    """
    keep_stdout_for_json(as_json)
    loaded = load_recipe(recipe, overrides)
    resolve_offline(loaded, offline=offline)
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()
    from prefcli.evaluation.check_sft import check_sft as measure

    try:
        report = measure(loaded.recipe)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    say(*report.lines())
    if as_json:
        print_json(report.as_dict())
    raise typer.Exit(ExitCode.DONE if report.passed else ExitCode.GATE)


@app.command()
def sample(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model folders or hub ids to compare.")
    ],
    prompts: Annotated[
        str, typer.Option("--prompts", help="Data file with a `prompt` column.", metavar="FILE")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write prompt and completions as JSONL.", metavar="FILE"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 42,
    chat_template: Annotated[str | None, typer.Option(metavar="FILE")] = None,
    offline: Offline = False,
) -> None:
    """What each model answers to each prompt: before beside after."""
    if offline:
        go_offline()
    from prefcli.library_logging import quiet_libraries  # border

    quiet_libraries()
    from prefcli.evaluation.generate import Sampling, answers

    if output is not None:
        _make_parent(Path(output))
    rows = answers(models, prompts, chat_template, Sampling(max_new_tokens, temperature, seed))
    if output is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(output).write_text(text, encoding="utf-8")
        say(f"{len(rows)} prompts answered, written to {output}")
        return
    for row in rows:
        say("", f"prompt: {row['shown']}")
        for model in models:
            say(f"  {model}: {row['completions'][model].strip()}")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--output {path}: {error.strerror}") from None
