"""pydantic's errors in the user's words: where, what is wrong, and the nearest right key."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prefcli.errors import Problem
from prefcli.methods import METHODS
from prefcli.recipe.aliases import renamed
from prefcli.recipe.schema import Recipe
from prefcli.recipe.source_map import Key, Places, dotted
from prefcli.recipe.suggestions import closest, example, is_source, nearest
from prefcli.recipe.yaml_reader import scalar

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "valid Unicode text",
    "list_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
_BOUNDS = {
    "gt": "a number above {}",
    "ge": "{} or more",
    "lt": "a number below {}",
    "le": "{} or less",
}


def explain(
    error: ValidationError, data: Any, places: Places, told: Collection[str] = ()
) -> list[Problem]:
    """One problem a mistake, but none for the paths that are `told` already."""
    problems: dict[Key, Problem] = {}
    choices: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path, rest = in_data(detail["loc"], data)
        if not rest or detail["type"] in ("missing", "extra_forbidden"):
            problems.setdefault((*path, *rest), _problem(detail, path, places))
        elif isinstance(rest[-1], int):
            # An entry of a list that is one alternative of a union.
            entry = (*path, rest[-1])
            problems.setdefault(entry, _problem(detail, entry, places))
            choices.pop(path, None)
        elif not any(known[: len(path)] == path for known in problems):
            # A union: pydantic reports each alternative; the user made one mistake.
            choices.setdefault(path, []).append(detail)
    for path, details in choices.items():
        problems.setdefault(path, _union_problem(path, details, places))
    return [p for p in problems.values() if p.path not in told]


def in_data(loc: tuple[int | str, ...], data: Any) -> tuple[Key, tuple[int | str, ...]]:
    """The part of pydantic's location that names a place in the data, and what is left."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, Mapping):
            continue  # one source where a list may stand
        here = isinstance(data, Mapping) and part in data
        if not here and not (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            return tuple(path), loc[i:]
        data = data[part]
        path.append(part)
    return tuple(path), ()


def _problem(detail: ErrorDetails, path: Key, places: Places) -> Problem:
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    here = dotted(path)
    if kind == "missing":
        missing = (*path, str(detail["loc"][-1]))
        listed = path and isinstance(path[-1], int)
        place = places.value(path) if listed else places.key(path)
        return Problem("is missing", place=place, path=dotted(missing), hint=example(missing))
    if kind == "extra_forbidden" and (new := renamed(here)):
        return Problem(
            f"{path[-1]!r} is now called {new.rpartition('.')[2]!r}",
            place=places.key(path),
            path=here,
            hint=f"write {new}",
        )
    if kind == "extra_forbidden":
        return Problem("no such key", place=places.key(path), path=here, hint=nearest(path))
    if kind == "value_error":
        return _rule_problem(str(context["error"]), path, places)
    place = places.value(path)
    if kind == "literal_error":
        return _choice_problem(value, _quoted(context["expected"]), place, here)
    if bounds := _bounds(detail):
        message, hint = f"{_show(value)} is out of range", f"write {bounds[0]}"
    elif kind == "finite_number":
        message, hint = f"{value} is not a finite number", None
    elif kind == "too_short":
        message, hint = "the list is empty", "name at least one"
    elif kind == "string_too_short":
        message, hint = "the text is empty", example(path)
    elif kind == "list_type" and is_source(path):
        message, hint = f"{_show(value)} is no data source", _cure(kind, value, path)
    else:
        what = f"is not {_TYPES[kind]}" if kind in _TYPES else f"is refused: {detail['msg']}"
        message, hint = f"{_show(value)} {what}", _cure(kind, value, path)
    return Problem(message, place=place, path=here, hint=hint)


def _bounds(detail: ErrorDetails) -> list[str]:
    context = detail.get("ctx", {})
    return [text.format(_plain(context[k])) for k, text in _BOUNDS.items() if k in context]


def _rule_problem(message: str, path: Key, places: Places) -> Problem:
    """A rule of ours over a value or a section; it names its keys and carries its own cure."""
    named = [(*path, *word.split(".")) for word in re.findall(r"[a-z_]+(?:[./][a-z_]+)*", message)]
    overridden = [key for key in named if key in places.overrides]
    written = [key for key in named if key in places.keys]
    where = max(overridden or written, key=len, default=path)
    return Problem(message, place=places.value(where), path=dotted(where) or None)


def _union_problem(path: Key, details: list[ErrorDetails], places: Places) -> Problem:
    value = details[0]["input"]
    place, here = places.value(path), dotted(path)
    wanted: list[str] = []
    for detail in details:
        if detail["type"] != "literal_error":
            bounds = _bounds(detail)
            wanted.append(bounds[0] if bounds else _TYPES.get(detail["type"], detail["msg"]))
            continue
        choices = _quoted(detail["ctx"]["expected"])
        if isinstance(value, str) and len(choices) > 1:
            return _choice_problem(value, choices, place, here)
        wanted.append(choices[0] if len(choices) == 1 else "one of " + ", ".join(choices))
    hint = None
    if isinstance(value, str) and "a list" in wanted:
        hint = closest(value, wanted) or f"write a list: [{value}]"
    message = f"{_show(value)} is neither {' nor '.join(dict.fromkeys(wanted))}"
    return Problem(message, place=place, path=here, hint=hint)


def _choice_problem(value: Any, choices: list[str], place: str, here: str) -> Problem:
    hint = closest(str(value), choices)
    if isinstance(value, str) and value in METHODS and here.endswith("loss_type"):
        hint = f"{value} is a method of its own: add a section `{value}: {{}}`, run prefcli {value}"
    return Problem(
        f"{_show(value)} is none of {', '.join(choices)}", place=place, path=here, hint=hint
    )


def _quoted(expected: str) -> list[str]:
    return [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _show(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    text = "nothing (null)" if value is None else text
    return text if len(text) <= 60 else text[:57] + "..."


def _cure(kind: str, value: Any, path: Key) -> str | None:
    """What to write instead, where the value tells."""
    if kind == "list_type" and is_source(path):
        return f"write {{path: {value if isinstance(value, str) else 'FILE_OR_HUB_ID'}}}"
    if kind == "list_type" and isinstance(value, str | int | float):
        return f"write a list: [{value}]"
    if kind == "model_type" and isinstance(value, str) and is_source(path):
        return f"write {{path: {value}}}"
    if kind == "model_type":
        return example(path) or "write {} for all defaults, or `key: value` lines below it"
    if kind == "string_type" and isinstance(value, bool | int):
        return f'quote it: "{_show(value)}"'
    if kind == "string_type" and isinstance(value, float):
        return "put it in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        meant = scalar(value) if len(value) < 40 and value.isascii() else value
        if isinstance(meant, bool | int | float) and isinstance(meant, bool) == (
            kind == "bool_type"
        ):
            return "write it without quotes"
    return None


def missing_method(recipe: Recipe, wanted: str, places: Places) -> Problem:
    """`prefcli kto` on a recipe without a kto section."""
    assert wanted in METHODS
    return Problem(
        f"the recipe has no {wanted!r} section; it has {', '.join(recipe.methods)}",
        place=f"{places.source}:1:1",
        hint=f"add `{wanted}: {{}}` for the defaults, or run `prefcli "
        f"{next(iter(recipe.methods))} {places.source}`",
    )
