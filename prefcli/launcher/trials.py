"""The runs of a sweep: a grid of settings, or random draws from it and from ranges."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.overrides import key_path
from prefcli.recipe.schema import Recipe
from prefcli.text import did_you_mean

_LONGEST_NAME = 120
"""Characters of a folder's name."""
_DIGEST = 6
"""Characters at the end of a name that lacks some of the values' characters."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})")
_DRAWS = 200
"""Draws for each run, after which no other run is expected."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """The name of its folder."""
    method: str
    overrides: tuple[str, ...]

    def with_sections(self, methods: Collection[str], *, precomputes: bool) -> Trial:
        """Add what the recipe lacks: the section of the method, and precomputed references.

        methods: that have a section in the recipe. precomputes: score the reference once for all.
        """
        added = [] if self.method in methods else [f"{self.method}={{}}"]
        if precomputes and METHODS[self.method]().precomputes_reference:
            added.append("reference.precompute=true")
        return replace(self, overrides=(*added, *self.overrides))

    def command(self, recipe: str, folder: Path, flags: Sequence[str] = ()) -> str:
        """Return the command as a shell reads it."""
        return shlex.join(["prefcli", *self.words(recipe, folder, flags)])

    def words(self, recipe: str, folder: Path, flags: Sequence[str] = ()) -> list[str]:
        """Return the command after `prefcli`. flags: options of the run."""
        place = f"output_dir={json.dumps(str(folder / self.name))}"
        return [self.method, recipe, *self.overrides, place, *flags]


@dataclass(frozen=True)
class _Range:
    """Numbers between two ends: on a log scale if both are positive, as rates and betas are."""

    low: float
    high: float
    is_whole: bool

    def draw(self, generator: random.Random) -> str:
        share = generator.random()
        if self.low > 0:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        if self.is_whole:
            return str(min(max(round(value), int(self.low)), int(self.high)))
        return f"{value:.3g}"


@dataclass(frozen=True)
class _Dimension:
    """A key with its values, or with a range of them."""

    key: str
    values: tuple[str, ...] | _Range

    @property
    def varies(self) -> bool:
        return isinstance(self.values, _Range) or len(self.values) > 1

    def draw(self, generator: random.Random) -> str:
        if isinstance(self.values, _Range):
            return self.values.draw(generator)
        return generator.choice(self.values)


def grid(settings: Sequence[str], methods: Sequence[str]) -> list[Trial]:
    """Return a trial per method and combination of values. Raises RecipeError.

    settings: KEY=VALUE, or KEY=VALUE,VALUE,... for a dimension of the grid. A key without a dot is
    an option of the method, such as beta, if the method has it.
    """
    dimensions = list(map(_dimension, settings))
    choices = [_listed(dimension) for dimension in dimensions]
    trials = [
        _trial(method, dimensions, values) for method in methods for values in product(*choices)
    ]
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(
            f"two runs of the sweep would be {twice[0]}",
            code="RCP036",
            hint="write each value once",
        )
    return trials


def draws(settings: Sequence[str], methods: Sequence[str], count: int, seed: int) -> list[Trial]:
    """Return so many different trials, drawn at random; methods take turns. Raises RecipeError.

    settings: see `grid`; a value may be a range LOW..HIGH.
    """
    dimensions = list(map(_dimension, settings))
    generator = random.Random(seed)
    by_name: dict[str, Trial] = {}
    for at in range(count * _DRAWS):
        if len(by_name) == count:
            break
        method = methods[len(by_name) % len(methods)]
        if at % _DRAWS > _DRAWS / 2:  # all runs of this method may have been drawn
            method = generator.choice(methods)
        trial = _trial(method, dimensions, [d.draw(generator) for d in dimensions])
        by_name.setdefault(trial.name, trial)
    if len(by_name) < count:
        raise RecipeError(
            f"--random {count}: the settings have {len(by_name)} different runs",
            code="RCP033",
            hint="draw fewer, or name more values or a range LOW..HIGH",
        )
    return list(by_name.values())


def _trial(method: str, dimensions: Sequence[_Dimension], values: Sequence[str]) -> Trial:
    chosen = [
        (_of_method(dimension.key, method), value)
        for dimension, value in zip(dimensions, values, strict=True)
    ]
    keys = [key for key, _ in chosen]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise RecipeError(
            f"{twice[0]} is set twice",
            code="RCP036",
            hint=f"write all values after one key: {twice[0]}=VALUE,VALUE",
        )
    if "output_dir" in keys:
        raise RecipeError(
            "output_dir has no effect in a sweep, whose runs have folders of their own",
            code="RCP025",
            hint="name the folder of all runs with --output-dir",
        )
    varied = [
        f"{key.rpartition('.')[2]}={value}"
        for (key, value), dimension in zip(chosen, dimensions, strict=True)
        if dimension.varies
    ]
    name = _folder_name("-".join([method, *varied]))
    return Trial(name, method, tuple(f"{key}={value}" for key, value in chosen))


def _folder_name(text: str) -> str:
    """Return a folder's name that differs from those of all other texts."""
    name = re.sub(r"[^\w.=-]+", "_", text)
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST]
    return f"{name[: _LONGEST_NAME - _DIGEST - 1]}-{digest}"


def _listed(dimension: _Dimension) -> tuple[str, ...]:
    """Return the values of a dimension of a grid. Raises RecipeError for a range."""
    values = dimension.values
    if isinstance(values, _Range):
        raise RecipeError(
            f"{dimension.key}={values.low:g}..{values.high:g} is a range, and a grid needs values",
            code="RCP037",
            hint="add --random N to draw from it, or write values: KEY=VALUE,VALUE",
        )
    return values


def _dimension(setting: str) -> _Dimension:
    key, equals, text = setting.partition("=")
    values = _split(text)
    if not equals or key_path(key) is None or not all(values):
        raise RecipeError(
            f"{setting!r} is not KEY=VALUE,VALUE,...",
            code="RCP013",
            hint="write a key of the recipe and its values, such as dpo.beta=0.05,0.1,0.2",
        )
    if len(values) == 1 and (ends := _RANGE.fullmatch(values[0])):
        return _Dimension(key, _range(setting, ends["low"], ends["high"]))
    return _Dimension(key, tuple(values))


def _range(setting: str, low: str, high: str) -> _Range:
    ends = float(low), float(high)
    if not ends[0] < ends[1] < math.inf:
        raise RecipeError(
            f"{setting!r}: the range ends below its start",
            code="RCP013",
            hint="write the lower number first: KEY=LOW..HIGH",
        )
    return _Range(*ends, is_whole=all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high)))


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: lists and mappings are one value."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _of_method(key: str, method: str) -> str:
    """Return the path of a key in the recipe. Raises RecipeError for a word that is none."""
    options = {field.alias or name for name, field in METHODS[method].model_fields.items()}
    if "." in key or key.partition("[")[0] in Recipe.model_fields:
        return key
    if key not in options:
        raise RecipeError(
            f"{key} is neither an option of {method} nor a key of the recipe",
            code="RCP001",
            hint=did_you_mean(key, sorted(options)) or f"write one of {', '.join(sorted(options))}",
        )
    return f"{method}.{key}"
