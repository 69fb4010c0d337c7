"""Values outside published ranges: a warning, or an error if they are far outside."""

from __future__ import annotations

from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.methods import Band, Method
from prefcli.recipe.schema import Recipe

_FAR = 10.0 * (1 + 1e-9)
"""Ten times, with room for rounding."""
_FEWEST_PARAMETERS = 100e6
"""The smallest models with published values have 135 million."""


def check_published_ranges(
    recipe: Recipe, method: Method, parameters: int, *, allowed: bool = False
) -> list[str]:
    """Return warnings as lines; raise RecipeError for values ten times outside unless `allowed`."""
    if parameters < _FEWEST_PARAMETERS:
        return []
    data = recipe.model_dump(by_alias=True)
    bands = method.bands(lora=recipe.trains_adapter, parameters=parameters)
    outside = [
        (path, value, band)
        for path, band in bands.items()
        if (value := _at(data, path)) is not None and not band.low <= value <= band.high
    ]
    far = [(p, v, b) for p, v, b in outside if not b.low / _FAR <= v <= b.high * _FAR]
    if far and not allowed:
        raise RecipeError(
            [
                Problem(
                    f"{value:g} is {_off(value, band)} {_published(method, band)}",
                    path=path,
                    hint="write a value in this range, or pass --allow-unusual",
                    code="RCP022",
                )
                for path, value, band in far
            ]
        )
    return [
        f"{path} {value:g} is outside {_published(method, band)}" for path, value, band in outside
    ]


def _at(data: dict[str, Any], path: str) -> float | None:
    value: Any = data
    for key in path.split("."):
        value = value[key]
    return value if isinstance(value, int | float) else None


def _published(method: Method, band: Band) -> str:
    return f"the published range for {method.name}: {band.low:g} to {band.high:g} ({band.source})"


def _off(value: float, band: Band) -> str:
    return (
        f"{value / band.high:.0f} times above"
        if value > band.high
        else (f"{band.low / value:.0f} times below" if value else "far below")
    )
