"""Downloads for runs without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, LocatedError, command_app, open_recipe, print_json
from prefcli.console import is_screen, say
from prefcli.errors import PrefcliError, RecipeError
from prefcli.recipe.overrides import refuse_spaces

app = command_app()


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Recipes, and the overrides for all of them."""
    refuse_spaces(arguments)
    recipes = [argument for argument in arguments if "=" not in argument]
    if not recipes:
        raise RecipeError(
            "no recipe is given", code="RCP026", hint="write RECIPE... [KEY=VALUE]..."
        )
    return recipes, [argument for argument in arguments if "=" in argument]


@app.command()
def download(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and overrides for all of them."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Download models and data for --offline.

    Of a model, only safetensors, configuration and tokenizer are downloaded.
    """
    recipes, overrides = split_arguments(arguments)
    loaded = [open_recipe(recipe, overrides, as_json=as_json) for recipe in recipes]
    # The border of the heavy half.
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from prefcli.hub.download import Downloaded, download_recipes, total

    if not is_screen():
        disable_progress_bars()
    downloaded: list[Downloaded] = []
    failure: PrefcliError | None = None
    try:
        for item in download_recipes([one.recipe for one in loaded]):
            downloaded.append(item)
            say(str(item))
    except PrefcliError as error:
        failure = LocatedError(error, loaded[0]) if len(loaded) == 1 else error
    say(f"total: {total(downloaded)}")
    if failure is not None:
        raise failure
    if as_json:
        print_json(
            {"total": total(downloaded), "downloaded": [item.as_dict() for item in downloaded]}
        )
