"""Commands about recipes, which need no torch."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli.app import Json, app, print_json
from prefcli.console import document, say
from prefcli.errors import ExitCode, PrefcliError, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe import Recipe, catalog, load
from prefcli.recipe.trackers import tracker_problems

recipes_app = typer.Typer(
    help="The shipped recipes: list, show, copy.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(recipes_app, name="recipes")


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...")], as_json: Json = False
) -> None:
    """Check recipes, without torch: every error at once.

    Against the schema, and for the packages that their trackers need here.
    """
    results: list[dict[str, Any]] = []
    for path in recipes:
        try:
            loaded = load(path)
            missing = [loaded.locate(p) for p in tracker_problems(loaded.recipe.logging)]
            if missing:
                raise RecipeError(missing)
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
def migrate(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Of alignment-handbook, trl, LLaMA-Factory, axolotl."),
    ],
    method: Annotated[
        str | None,
        typer.Option(help="Where the file leaves it in doubt.", metavar="|".join(METHODS)),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Write the recipe here.", metavar="RECIPE.yaml")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many the run had; the file does not say.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Another tool's YAML becomes a recipe; what is renamed or dropped is told, key by key.

    The recipe goes to standard output, everything else to standard error.
    """
    if method is not None and method not in METHODS:
        raise RecipeError(f"--method {method}: there are {', '.join(METHODS)}")
    if output is not None and Path(output).exists():
        raise RecipeError(f"{output} exists already", hint="name a new file")
    # Light, but a tenth of every command's start-up.
    from prefcli.recipe.migrate import migrate as migrate_file

    found = migrate_file(file, method, devices)
    told = [f"error: {problem}" for problem in found.problems] or found.lines()
    print(*told, sep="\n", file=sys.stderr)
    if output is not None and found.text is not None:
        _write(Path(output), found.text)
    if as_json:
        print_json(found.as_dict())
    elif output is None and found.text is not None:
        document(found.text.rstrip("\n"))
    raise typer.Exit(ExitCode.RECIPE if found.problems else ExitCode.DONE)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(f"can't write {path}: {error.strerror}") from None
    print(f"written to {path}", file=sys.stderr)


@app.command()
def schema() -> None:
    """The recipe's JSON Schema, for completion in editors."""
    print_json(Recipe.model_json_schema(by_alias=True))


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Name and purpose of each shipped recipe."""
    found = catalog.shipped()
    if as_json:
        print_json([{"name": r.name, "about": r.about} for r in found])
        return
    width = max(len(r.name) for r in found)
    for i, (_, group) in enumerate(groupby(found, key=lambda r: r.folder)):
        say(*([""] if i else []), *(f"{r.name:<{width}}  {r.about}" for r in group))


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print a shipped recipe."""
    say(catalog.find(name).path.read_text(encoding="utf-8").rstrip())


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe, or a folder of them with its data.")],
    target: Annotated[Path, typer.Argument(help="Folder to copy into.")],
) -> None:
    """Copy a shipped recipe, or a folder of recipes with its data, to make it yours."""
    for path in catalog.copy(name, target):
        say(str(path))
