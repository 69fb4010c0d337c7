"""The command line as a whole, before any command reads it."""

from __future__ import annotations

from collections.abc import Sequence

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.aliases import RENAMED_COMMANDS, RENAMED_FLAGS
from prefcli.recipe.overrides import key_path
from prefcli.secrets import is_secret


def refuse_secrets(arguments: Sequence[str]) -> None:
    """A token on the command line is read by everybody on the machine. Raises RecipeError."""
    problems = []
    for number, argument in enumerate(arguments, start=1):
        if is_secret(argument):
            name, equals, _ = argument.partition("=")
            known = equals and not is_secret(name) and key_path(name) is not None
            problems.append(
                Problem(
                    "this looks like an access token",
                    place=f"argument {number} of the command line",
                    path=name if known else None,
                    hint="others see what is typed there: `hf auth login`, or export HF_TOKEN",
                )
            )
    if problems:
        raise RecipeError(problems)


def refuse_renamed(arguments: Sequence[str]) -> None:
    """Raise RecipeError for a command or an option that has a new name."""
    if arguments and (new := RENAMED_COMMANDS.get(arguments[0])):
        raise RecipeError(
            f"prefcli {arguments[0]} is now called {new}", hint=f"write prefcli {new} ..."
        )
    for argument in arguments:
        if new := RENAMED_FLAGS.get(argument):
            raise RecipeError(f"{argument} is now called {new}", hint=f"write {new}")
