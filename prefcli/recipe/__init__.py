"""Recipes: a file becomes a frozen Recipe, or a list of problems with places."""

from prefcli.recipe.load import Loaded, load
from prefcli.recipe.schema import Recipe

__all__ = ["Loaded", "Recipe", "load"]
