"""The shipped recipes: next to the package in a clone, inside it in a wheel."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from prefcli.errors import RecipeError
from prefcli.text import did_you_mean

SCHEMA_LINE = "# yaml-language-server: $schema=recipe.schema.json"
"""Where editors find the schema, which `prefcli schema` prints."""

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shipped:
    """A recipe file with the name that `recipes show` and `copy` accept."""

    name: str
    path: Path
    about: str

    @property
    def folder(self) -> str:
        """The folder that `copy` copies as a whole; empty for a single recipe."""
        return self.name.rpartition("/")[0]


def root() -> Path:
    """The folder of shipped recipes. Raises AssertionError for a broken installation."""
    for folder in (_PACKAGE / "shipped", _PACKAGE.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise AssertionError("the installation holds no recipes")


def shipped() -> list[Shipped]:
    """All shipped recipes by name; recipes in a folder with their data come first."""
    recipes = [
        Shipped(path.relative_to(root()).with_suffix("").as_posix(), path, _about(path))
        for path in root().rglob("*.yaml")
    ]
    return sorted(recipes, key=lambda r: ("/" not in r.name, r.name))


def find(name: str) -> Shipped:
    """The recipe of this name. Raises RecipeError."""
    name = name.removesuffix(".yaml").removeprefix("recipes/")
    for recipe in shipped():
        if recipe.name == name:
            return recipe
    raise _unknown(name)


def copy(name: str, target: Path) -> list[Path]:
    """Copy a recipe, or a folder of recipes with its data, and return the copied recipes."""
    source = (root() / name.removesuffix("/").removeprefix("recipes/")).resolve()
    if not source.is_dir() or root().resolve() not in source.parents:
        source = find(name).path
    names_file = target.suffix in (".yaml", ".yml") and source.is_file()
    destination = target if names_file else target / source.name
    target = destination.parent
    if destination.exists():
        raise RecipeError(
            f"{destination} exists already",
            code="RCP027",
            hint="remove it, or copy into another folder",
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, destination)
        else:
            shutil.copyfile(source, destination)
        copied = sorted(destination.rglob("*.yaml")) if source.is_dir() else [destination]
        for recipe in copied:
            recipe.write_text(f"{SCHEMA_LINE}\n{recipe.read_text('utf-8')}", "utf-8")
    except OSError as error:
        raise RecipeError(
            f"can't write {destination}: {error.strerror}",
            code="RCP027",
            hint="copy into another folder",
        ) from None
    return copied


def _about(path: Path) -> str:
    """The first comment line."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")


def _unknown(name: str) -> RecipeError:
    names = [recipe.name for recipe in shipped()]
    inside = [known for known in names if known.startswith(f"{name}/")]
    return RecipeError(
        f"{name} is a folder of recipes" if inside else f"no shipped recipe is called {name!r}",
        code="RCP026",
        hint=f"write one of {', '.join(inside)}"
        if inside
        else did_you_mean(name, names) or "`prefcli recipes list` lists them",
    )
