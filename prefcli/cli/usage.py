"""Mistakes on the command line as problems with a place and a cure.

click stops at the first one. What it can't know is what the words would mean in a recipe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import typer

from prefcli.errors import Problem, RecipeError
from prefcli.methods import METHODS
from prefcli.text import did_you_mean

CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException, which typer does not export; some versions of typer have a copy of their own."""

_TRAIN = ("train", "run", "fit", "finetune", "fine-tune", "tune", "align")
_OTHER_METHODS = (
    "grpo",
    "ppo",
    "rloo",
    "gkd",
    "reward",
    "rm",
    "prm",
    "online-dpo",
    "nash-md",
    "xpo",
)
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")
_CHOICES = re.compile(r"is not one of (?P<values>'.*')")
_YAML = (".yaml", ".yml")


def check_command(arguments: Sequence[str], commands: Collection[str]) -> None:
    """Raise RecipeError if the first argument is not a command."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in commands:
        return
    word = arguments[0]
    raise RecipeError(
        "this is a recipe, where a command was expected"
        if _is_recipe(word)
        else f"prefcli has no command {word!r}",
        place="argument 1 of the command line",
        hint=_meant_command(word, arguments[1:], commands),
        code="RCP035",
    )


def _meant_command(word: str, rest: Sequence[str], commands: Collection[str]) -> str:
    plain = word.lower().replace("_", "-")
    if _is_recipe(word):
        return f"run prefcli {_method_of(word)} {word}"
    if plain in _TRAIN:
        recipe = next(filter(_is_recipe, rest), "RECIPE")
        return f"the method is the command: prefcli {_method_of(recipe)} {recipe}"
    if plain == "help":
        return f"run prefcli {' '.join([*rest[:1], '--help'])}"
    if plain == "version":
        return "run prefcli --version"
    if plain == "compare":
        return "run prefcli report RUN RUN ..., or prefcli eval RUN RUN ... for intervals"
    if plain in _OTHER_METHODS:
        return f"prefcli trains by {', '.join(METHODS)}; use trl's own trainer for this method"
    return did_you_mean(plain, commands) or "prefcli --help lists the commands"


def _is_recipe(word: str) -> bool:
    return word.lower().endswith(_YAML)


def _method_of(recipe: str) -> str:
    """The first method that a recipe has a section for; METHOD if it can't be read."""
    from prefcli.recipe.yaml_reader import parse, read_text

    try:
        data, _, _ = parse(read_text(recipe), recipe)
    except RecipeError:
        return "METHOD"
    return next((name for name in METHODS if name in data), "METHOD")


def usage_problem(error: Any, arguments: Sequence[str]) -> Problem:
    """click's error as a problem."""
    command = arguments[0] if arguments else ""
    option = getattr(error, "option_name", None) or _option_of(error, arguments)
    place, hint = (
        None,
        f"prefcli {command} --help lists the arguments and options".replace("  ", " "),
    )
    if option is not None:
        unknown = "o such option" in error.format_message()
        given = [argument.partition("=")[0] for argument in arguments]
        if option in given:
            place = f"argument {given.index(option) + 1} of the command line"
        if unknown:
            possible = getattr(error, "possibilities", None) or ()
            meant = did_you_mean(option.replace("_", "-"), possible, 0.8)
            hint = meant or _meant_override(option, command, arguments) or hint
        elif choices := _CHOICES.search(error.format_message()):
            hint = f"write one of {choices['values']}"
        elif values := _values_of(option, command):
            hint = f"write {option} {values}"
    message = error.format_message().partition(" (Possible")[0].rstrip(".")
    message = message.replace("Value error, ", "").replace("Input should be", "it should be")
    return Problem(message[:1].lower() + message[1:], place=place, hint=hint, code="RCP034")


def _option_of(error: Any, arguments: Sequence[str]) -> str | None:
    """The option with a wrong value, or the one that is missing."""
    names = getattr(getattr(error, "param", None), "opts", ())
    options = [name for name in names if name.startswith("-")]
    given = [argument.partition("=")[0] for argument in arguments]
    return next((name for name in options if name in given), next(iter(options), None))


def _values_of(option: str, command: str) -> str | None:
    """The values that a command's option takes, as its help shows them."""
    return next((p.metavar for p in _parameters(command) if option in p.opts), None)


def _parameters(command: str) -> Sequence[Any]:
    from prefcli.cli.main import command_tree

    return getattr(command_tree().commands.get(command), "params", ())


def _meant_override(option: str, command: str, arguments: Sequence[str]) -> str | None:
    """How to write an option that is a key of the recipe, if the command takes KEY=VALUE."""
    if not any("KEY=VALUE" in (parameter.metavar or "") for parameter in _parameters(command)):
        return None
    from prefcli.recipe.suggestions import all_paths

    name = option.lstrip("-").replace("-", "_")
    paths = list(all_paths())
    keys = [path for path in paths if path == name or path.rpartition(".")[2] == name]
    if not keys:
        return None
    key = name if name in keys else f"{command}.{name}"
    if key not in keys:
        key = keys[0]
    at = next(i for i, given in enumerate(arguments) if given.partition("=")[0] == option)
    _, equals, value = arguments[at].partition("=")
    if not equals:
        following = arguments[at + 1 : at + 2]
        value = following[0] if following and not following[0].startswith("-") else "VALUE"
    return f"a key of the recipe is written without --: {key}={value}"


def check_recipe_argument(recipe: str, overrides: Sequence[str]) -> None:
    """Raise RecipeError, with the likely cause, if the argument can't be a recipe."""
    path = Path(recipe)
    place = recipe if recipe.isprintable() and recipe else repr(recipe)
    exists = os.path.exists(recipe)  # Path.exists raises for a name that is too long
    if recipe in (*METHODS, "check-sft") and not exists:
        raise RecipeError(
            f"{recipe} is a method, where the recipe was expected",
            code="RCP002",
            hint=f"write the recipe first: RECIPE --method {recipe}",
        )
    if exists and path.suffix.lower() in _DATA_SUFFIXES and path.is_file():
        raise RecipeError(
            "this is a data file, not a recipe",
            place=place,
            hint=f"name it in a recipe: data: {{train: {{path: {recipe}}}}}",
            code="RCP011",
        )
    if recipe.isprintable() and not exists and (hint := _meant_recipe(recipe, overrides)):
        raise RecipeError("no such file", place=place, hint=hint, code="RCP011")


def _meant_recipe(recipe: str, overrides: Sequence[str]) -> str | None:
    from prefcli.recipe import catalog  # with the schema, which --help does not need
    from prefcli.recipe.paths import neighbour

    if "=" in recipe:
        first = next(filter(_is_recipe, overrides), "RECIPE")
        return f"write the recipe before KEY=VALUE: {first} {recipe}"
    name = recipe.removesuffix(".yaml").removeprefix("recipes/")
    shipped = {known for one in catalog.shipped() for known in (one.name, one.folder) if known}
    if name in shipped:
        return f"{name} is a shipped recipe: run prefcli recipes copy {name}"
    near = neighbour(Path(recipe), _YAML)
    return f"did you mean {near}?" if near else None
