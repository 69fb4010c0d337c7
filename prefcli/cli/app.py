"""The application, and what its commands share: arguments, places of errors, documents.

The heavy half is imported inside commands, below the lines that say `border`, and nowhere else.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from prefcli import __version__
from prefcli.console import document, say
from prefcli.errors import ExitCode, PrefcliError, RecipeError
from prefcli.methods import Method
from prefcli.recipe import Loaded, load
from prefcli.recipe.offline import go_offline, settle_offline
from prefcli.recipe.trackers import keep_trackers_here
from prefcli.recipe.validation_errors import missing_method

# click keeps the lines of a paragraph that starts with \b.
_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>2}  {code.meaning}" for code in ExitCode
)

app = typer.Typer(
    name="prefcli",
    help="Preference tuning of language models from one typed recipe.",
    epilog=_EXIT_CODES,
    rich_markup_mode=None,  # boxes cost a third of the start-up, and are noise in a log
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="As in training.learning_rate=1e-6."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", help="The same as output_dir=...", metavar="FOLDER")
]

Offline = Annotated[
    bool,
    typer.Option("--offline", help="Open no connection: models and data come from the cache."),
]


class LocatedError(PrefcliError):
    """An error of a later stage, with the places its dotted paths have in the recipe."""

    def __init__(self, error: PrefcliError, loaded: Loaded) -> None:
        super().__init__([loaded.locate(problem) for problem in error.problems])
        self.exit_code = error.exit_code


def load_recipe(path: str, overrides: list[str] | None, output_dir: str | None = None) -> Loaded:
    extra = (
        [f"output_dir={json.dumps(output_dir, ensure_ascii=False)}"]
        if output_dir is not None
        else []
    )
    return load(path, [*(overrides or []), *extra])


def resolve_offline(loaded: Loaded, *, offline: bool) -> None:
    """Find out once whether the hub answers, or do without it; to be called above the border."""
    if offline:
        go_offline()
        try:
            say(*keep_trackers_here(loaded.recipe.logging))
        except PrefcliError as error:
            raise LocatedError(error, loaded) from None
    elif settle_offline(loaded.recipe):
        say("the hub does not answer: going by what is in the cache")


def section(loaded: Loaded, name: str) -> Method:
    """The recipe's section of a method. Raises RecipeError where it has none."""
    method = loaded.recipe.methods.get(name)
    if method is None:
        raise RecipeError(missing_method(loaded.recipe, name, loaded.places))
    return method


def print_json(content: Any) -> None:
    document(json.dumps(content, indent=2, default=str))


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"prefcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Preference tuning of language models from one typed recipe."""
