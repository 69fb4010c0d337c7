"""What has to happen where there is a network, for runs where there is none."""

from __future__ import annotations

from typing import Annotated

import typer

from prefcli.cli.app import Json, LocatedError, app, load_recipe, print_json
from prefcli.console import is_screen, keep_stdout_for_json, say
from prefcli.errors import PrefcliError, RecipeError


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
    """Bring a recipe's models and data into the cache; then train with --offline.

    Of models only safetensors, configuration and tokenizer.
    """
    keep_stdout_for_json(as_json)
    overrides = [each for each in arguments if "=" in each]
    loaded = [load_recipe(each, overrides) for each in arguments if "=" not in each]
    if not loaded:
        raise RecipeError("no recipe is named", hint="prefcli download RECIPE [KEY=VALUE]...")
    # border
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from prefcli.hub.download import Downloaded, fetch, total

    if not is_screen():
        disable_progress_bars()
    taken: list[Downloaded] = []
    failed: PrefcliError | None = None
    try:
        for each in fetch([one.recipe for one in loaded]):
            taken.append(each)
            say(str(each))
    except PrefcliError as error:
        failed = LocatedError(error, loaded[0]) if len(loaded) == 1 else error
    say(f"total: {total(taken)}")
    if failed is not None:
        raise failed
    if as_json:
        print_json({"total": total(taken), "taken": [each.as_dict() for each in taken]})
