"""Commands about recipes, which need no torch."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli.app import Json, app, print_json
from prefcli.console import say
from prefcli.errors import ExitCode, PrefcliError
from prefcli.recipe import Recipe, library, load

recipes_app = typer.Typer(
    help="The shipped recipes: list, show, copy.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(recipes_app, name="recipes")


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...")], as_json: Json = False
) -> None:
    """Check recipes against the schema, without torch: every error at once."""
    results: list[dict[str, Any]] = []
    for path in recipes:
        try:
            loaded = load(path)
        except PrefcliError as error:
            problems = [problem.as_dict() for problem in error.problems]
            results.append({"recipe": path, "valid": False, "problems": problems})
            if not as_json:
                for problem in error.problems:
                    print(f"error: {problem}", file=sys.stderr)
        else:
            methods = list(loaded.recipe.methods)
            results.append({"recipe": path, "valid": True, "methods": methods})
            if not as_json:
                say(f"{path}: valid ({', '.join(methods)})")
    if as_json:
        print_json(results)
    valid = all(result["valid"] for result in results)
    raise typer.Exit(ExitCode.DONE if valid else ExitCode.RECIPE)


@app.command()
def schema() -> None:
    """The recipe's JSON Schema, for completion in editors."""
    print_json(Recipe.model_json_schema(by_alias=True))


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Name and purpose of each shipped recipe."""
    found = library.shipped()
    if as_json:
        print_json([{"name": r.name, "about": r.about} for r in found])
        return
    width = max(len(r.name) for r in found)
    for i, (_, group) in enumerate(groupby(found, key=lambda r: r.folder)):
        say(*([""] if i else []), *(f"{r.name:<{width}}  {r.about}" for r in group))


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print a shipped recipe."""
    say(library.find(name).path.read_text(encoding="utf-8").rstrip())


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe, or a folder of them with its data.")],
    target: Annotated[Path, typer.Argument(help="Folder to copy into.")],
) -> None:
    """Copy a shipped recipe, or a folder of recipes with its data, to make it yours."""
    for path in library.copy(name, target):
        say(str(path))
