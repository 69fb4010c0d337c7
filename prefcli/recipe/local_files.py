"""Which files and folders of a recipe are not here, and what was probably meant. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefcli.errors import Problem
from prefcli.recipe.paths import is_local, neighbour
from prefcli.recipe.schema import Recipe


def missing_files(recipe: Recipe, folder: Path) -> list[Problem]:
    """Return one problem per name that is a path, or looks like one, and does not exist here.

    folder: where the recipe is.
    """
    return [
        Problem(
            f"no such file or folder: {name}",
            path=path,
            hint=_meant(name, folder),
            code=code,
        )
        for path, name, code in _names(recipe)
        if _is_path(name) and not Path(name).expanduser().exists()
    ]


def _names(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted path, name, error code) of models and of data."""
    models = {
        "model.name_or_path": recipe.model.name_or_path,
        "model.tokenizer": recipe.model.tokenizer,
        "reference.name_or_path": recipe.reference.name_or_path,
        **{path: name for path, (name, _) in recipe.judge_models.items()},
    }
    yield from ((path, name, "MDL001") for path, name in models.items() if name is not None)
    for path, source in recipe.sources:
        yield f"{path}.path", source.path, "DAT003"


def _is_path(name: str) -> bool:
    """True for a path, and for a name whose first part is a folder here: models/NAME."""
    first, slash, _ = name.partition("/")
    return is_local(name) or (bool(slash) and Path(first).is_dir())


def _meant(name: str, folder: Path) -> str:
    path = Path(name).expanduser()
    beside = folder / path
    if not path.is_absolute() and folder.resolve() != Path.cwd() and beside.exists():
        return f"it is next to the recipe: write ${{recipe_dir:}}/{name}, or run prefcli there"
    if (near := neighbour(path)) is not None:
        return f"did you mean {near}?"
    return "paths are relative to the folder in which prefcli runs; it may exist only where it runs"
