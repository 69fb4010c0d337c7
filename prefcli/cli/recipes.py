"""The shipped recipes."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document, say
from prefcli.recipe import catalog

app = command_app()
recipes_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(recipes_app, name="recipes", help="List, show or copy the shipped recipes.")


@recipes_app.callback()
def _list_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the shipped recipes with their purpose."""
    recipes = catalog.shipped()
    if as_json:
        print_json([{"name": recipe.name, "about": recipe.about} for recipe in recipes])
        return
    width = max(len(recipe.name) for recipe in recipes)
    for i, (_, group) in enumerate(groupby(recipes, key=lambda recipe: recipe.folder)):
        lines = [f"{recipe.name:<{width}}  {recipe.about}" for recipe in group]
        say(*([""] if i else []), *lines)


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print a shipped recipe."""
    document(catalog.find(name).path.read_text(encoding="utf-8").rstrip())


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe, or a folder of recipes with its data.")],
    target: Annotated[
        Path, typer.Argument(help="Folder to copy into, or a name for the copy (NEW.yaml).")
    ] = Path(),
) -> None:
    """Copy a shipped recipe, or a folder of recipes with its data, for editing."""
    for path in catalog.copy(name, target):
        say(str(path))
