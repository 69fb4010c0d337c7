"""On-policy rounds of pairs and training."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from prefcli.cli.recipe_command import (
    Json,
    MethodOption,
    Offline,
    Overrides,
    RecipeArgument,
    check_context,
    check_writable,
    choose_method,
    command_app,
    folder_of_runs,
    open_recipe,
    print_json,
    resolve_offline,
    write_file,
)
from prefcli.console import document, keep_stdout_for_json, say
from prefcli.errors import STOPPED, RecipeError
from prefcli.launcher.rounds import KINDS, Plan, RoundReference, Rounds, run_rounds
from prefcli.methods import Method
from prefcli.recipe import Recipe

_PAGE = "iterate.html"

app = command_app()


@app.command()
def iterate(
    recipe: RecipeArgument,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds at most.")],
    overrides: Overrides = None,
    method: MethodOption = None,
    reference: Annotated[
        RoundReference,
        typer.Option(
            help="Reference of a round's training: the model that it starts from, or the "
            "recipe's model in every round."
        ),
    ] = "previous",
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            metavar="NATS",
            min=0.0,
            help="End after a round whose KL to the recipe's model, per token, is above this.",
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            "--output-dir",
            metavar="FOLDER",
            help="The folder of all rounds; default: output_dir of the recipe, with -rounds.",
        ),
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the commands, and run nothing.")
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Sample, judge, train and evaluate in rounds.

    Each round samples completions of the last model (`prefcli pairs`), trains on them, and measures
    the mean score of new completions of data.eval's prompts and the KL to the recipe's model. It
    ends when that score does not rise. The same command continues after a stop.
    """
    keep_stdout_for_json(as_json)
    loaded = open_recipe(recipe, overrides, as_json=as_json)
    chosen = choose_method(loaded, method)
    check_context(loaded)
    _check(loaded.recipe, chosen)
    folder = folder_of_runs(loaded.recipe, output_dir, "rounds")
    flags = ["--offline"] if offline else []
    plan = Plan(loaded.recipe, recipe, overrides or [], chosen, folder, reference, flags)
    if only_print:
        commands = [words for number in range(rounds + 1) for _, words in plan.steps(number)]
        document("\n".join(shlex.join(["prefcli", *words]) for words in commands))
        return
    check_writable(folder / _PAGE, "--output-dir")
    resolve_offline(loaded, offline=offline)
    outcome = run_rounds(plan, rounds, say, max_kl=max_kl)
    _report(plan, outcome)
    if as_json:
        best = outcome.best.number if outcome.results else None
        results = [result.as_dict() for result in outcome.results]
        print_json(
            {"folder": str(folder), "rounds": results, "best": best, "end": outcome.end}
            | {"exit_code": outcome.code}
        )
    raise typer.Exit(outcome.code)


def _check(recipe: Recipe, method: Method) -> None:
    """Raise RecipeError for a recipe that can't run in rounds."""
    kinds = {KINDS.get(method.rows), "pairs" if method.rows == "labelled" else None}
    if method.head != "language_model":
        problem = f"{method.name} trains no model that answers prompts", "choose another --method"
    elif method.needs_judge:
        problem = f"{method.name} samples new completions in each step", "run it without rounds"
    elif not recipe.judges_new_completions:
        problem = (
            "rounds need a judge of new completions",
            "add one, e.g. judge: {executable: {command: [python, judge.py]}}",
        )
    elif not recipe.data.eval_sources:
        problem = (
            "rounds need a data file with held-out prompts",
            "name them in data.eval, e.g. data.eval={path: eval.jsonl}",
        )
    elif recipe.pairs.kind not in kinds:
        problem = (
            f"pairs.kind {recipe.pairs.kind} makes no rows for {method.name}",
            f"write pairs.kind={KINDS[method.rows]}",
        )
    else:
        return
    raise RecipeError(problem[0], code="RCP025", hint=problem[1])


def _report(plan: Plan, outcome: Rounds) -> None:
    """Print a table of the rounds, and write the comparison of their runs."""
    from prefcli.launcher.sweep import run_in
    from prefcli.report.compare_page import compare_page

    if outcome.results:
        say(*outcome.lines())
        best = outcome.best
        where = plan.run(best.number) / "model" if best.number else "the starting model"
        say(f"iterate: best held-out score {best.score:+.3f}: {where}")
    say(f"iterate: {outcome.end}")
    if outcome.code in STOPPED:
        say("iterate: stopped; run the same command again to continue")
    numbers = [result.number for result in outcome.results if result.number]
    runs = [run for number in numbers if (run := run_in(plan.run(number))) is not None]
    if len(runs) > 1:
        write_file(plan.folder / _PAGE, compare_page(runs, summary=outcome.summary()))
