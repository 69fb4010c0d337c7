"""One command a method: train, or with --dry-run prove that training would go well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from prefcli.cli.app import (
    Json,
    LocatedError,
    OutputDir,
    Overrides,
    RecipeArgument,
    app,
    load_recipe,
    print_json,
    section,
)
from prefcli.console import keep_stdout_for_json, say
from prefcli.errors import ExitCode, PrefcliError
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded


def _method_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Prove that the recipe will run; train nothing.")
        ] = False,
        resume: Annotated[
            str,
            typer.Option(
                help="auto: go on from the run's last checkpoint, if there is one; never; "
                "or a checkpoint folder.",
                metavar="auto|never|PATH",
            ),
        ] = "auto",
        output_dir: OutputDir = None,
        allow_unusual: Annotated[
            bool,
            typer.Option(
                "--allow-unusual", help="Take values ten times outside what is published."
            ),
        ] = False,
        as_json: Json = False,
    ) -> None:
        keep_stdout_for_json(as_json)
        loaded = load_recipe(recipe, overrides, output_dir)
        run = _rehearse if dry_run else _train
        run(loaded, section(loaded, name), resume, as_json, allow_unusual=allow_unusual)

    command.__doc__ = METHODS[name].__doc__
    return command


def _train(
    loaded: Loaded, method: Method, resume: str, as_json: bool, *, allow_unusual: bool
) -> None:
    from prefcli.training.run import train  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    try:
        outcome = train(loaded.recipe, method, resume, allow_unusual=allow_unusual)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint, if there is one")
        raise typer.Exit(130) from None  # 128 + SIGINT, as shells have it
    if as_json:
        print_json(vars(outcome))


def _rehearse(
    loaded: Loaded, method: Method, resume: str, as_json: bool, *, allow_unusual: bool
) -> None:
    from prefcli.training.dry_run import dry_run  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    found = dry_run(loaded.recipe, method, resume, allow_unusual=allow_unusual)
    texts = dict.fromkeys(loaded.places.overrides.values())
    flags = ["--allow-unusual"] if allow_unusual else []
    flags += ["--resume", resume] if resume != "auto" else []
    problems = [loaded.locate(problem) for problem in found.problems]
    code = found.failure.exit_code if found.failure else ExitCode.DONE
    if as_json:
        print_json(
            {
                "will_run": not problems,
                "exit_code": int(code),
                "problems": [problem.as_dict() for problem in problems],
                **found.facts,
            }
        )
    for problem in problems:
        say(f"error: {problem}")
    say(
        f"will not run: {len(problems)} problem{'s'[: len(problems) != 1]} above"
        if problems
        else f"will run: {' '.join(['prefcli', method.name, loaded.places.source, *texts, *flags])}"
    )
    raise typer.Exit(code)


for _name, _class in METHODS.items():
    app.command(_name, short_help=(_class.__doc__ or "").splitlines()[0])(_method_command(_name))
