"""pydantic's errors as problems of a recipe: the place, the mistake and the cure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prefcli.config_base import RuleError
from prefcli.errors import Problem
from prefcli.methods import METHODS
from prefcli.recipe.aliases import renamed
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import HELD_OUT, SOURCES
from prefcli.recipe.source_map import Key, Places, dotted
from prefcli.recipe.suggestions import example, is_source, nearest
from prefcli.recipe.yaml_reader import number_or_flag
from prefcli.text import did_you_mean

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
_KEY_AND_VALUE = re.compile(r"([a-z_]+) ?[:=] ?(\S+)")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_BOUNDS = {
    "gt": "a number above {}",
    "ge": "{} or more",
    "lt": "a number below {}",
    "le": "{} or less",
}


def explain(
    error: ValidationError, data: Any, places: Places, reported: Collection[str] = ()
) -> list[Problem]:
    """One problem per mistake, except for paths that are already reported."""
    problems: dict[Key, Problem] = {}
    choices: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path, rest = in_data(detail["loc"], data)
        if not rest or detail["type"] in ("missing", "extra_forbidden"):
            problems.setdefault((*path, *rest), _problem(detail, path, places))
        elif isinstance(rest[-1], int):
            # The list is one alternative of a union.
            entry = (*path, rest[-1])
            problems.setdefault(entry, _problem(detail, entry, places))
            choices.pop(path, None)
        elif not any(known[: len(path)] == path for known in problems):
            # pydantic reports each alternative of a union; the user made one mistake.
            choices.setdefault(path, []).append(detail)
    for path, details in choices.items():
        problems.setdefault(path, _union_problem(path, details, places))
    return [p for p in problems.values() if p.path not in reported]


def in_data(loc: tuple[int | str, ...], data: Any) -> tuple[Key, tuple[int | str, ...]]:
    """Split pydantic's location: the path that exists in the data, and the rest."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, Mapping):
            continue  # a single source instead of a list
        if part in (SOURCES, HELD_OUT):
            continue  # the form of data.eval
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
        return Problem(
            "is missing", place=place, path=dotted(missing), hint=example(missing), code="RCP003"
        )
    if kind == "extra_forbidden" and (new := renamed(here)):
        return Problem(
            f"{path[-1]!r} is now called {new.rpartition('.')[2]!r}",
            place=places.key(path),
            path=here,
            hint=f"write {new}",
            code="RCP002",
        )
    if kind == "extra_forbidden":
        return Problem(
            "no such key", place=places.key(path), path=here, hint=nearest(path), code="RCP001"
        )
    if kind == "value_error":
        return _rule_problem(context["error"], path, places)
    place = places.value(path)
    if kind == "literal_error":
        return _choice_problem(value, _quoted(context["expected"]), place, here)
    bounds = _bounds(detail)
    if bounds or kind == "finite_number":
        problem = Problem(
            f"{_show(value)} is out of range" if bounds else f"{value} is not a finite number",
            hint=f"write {bounds[0]}" if bounds else None,
            code="RCP005",
        )
    elif kind in ("too_short", "string_too_short"):
        is_list = kind == "too_short"
        problem = Problem(
            "the list is empty" if is_list else "the text is empty",
            hint="name at least one" if is_list else example(path),
            code="RCP007",
        )
    else:
        expected = "a data source" if is_source(path) and kind == "list_type" else _TYPES.get(kind)
        problem = Problem(
            f"{_show(value)} is not {expected}" if expected else f"{_show(value)}: {detail['msg']}",
            hint=_cure(kind, value, path),
            code="RCP004",
        )
    return replace(problem, place=place, path=here)


def _bounds(detail: ErrorDetails) -> list[str]:
    context = detail.get("ctx", {})
    return [text.format(_plain(context[k])) for k, text in _BOUNDS.items() if k in context]


def _rule_problem(error: Exception, path: Key, places: Places) -> Problem:
    """A broken rule of prefcli, located at the most specific key that its message names."""
    message = str(error)
    named = [(*path, *word.split(".")) for word in re.findall(r"[a-z_]+(?:[./][a-z_]+)*", message)]
    overridden = [key for key in named if key in places.overrides]
    written = [key for key in named if key in places.keys]
    where = max(overridden or written, key=len, default=path)
    code = getattr(error, "code", None) or RuleError(message).code
    return Problem(message, place=places.value(where), path=dotted(where) or None, code=code)


def _union_problem(path: Key, details: list[ErrorDetails], places: Places) -> Problem:
    value = details[0]["input"]
    place, here = places.value(path), dotted(path)
    expected: list[str] = []
    for detail in details:
        if detail["type"] != "literal_error":
            bounds = _bounds(detail)
            expected.append(bounds[0] if bounds else _TYPES.get(detail["type"], detail["msg"]))
            continue
        choices = _quoted(detail["ctx"]["expected"])
        if isinstance(value, str) and len(choices) > 1:
            return _choice_problem(value, choices, place, here)
        expected.append(choices[0] if len(choices) == 1 else "one of " + ", ".join(choices))
    hint = None
    if isinstance(value, str) and "a list" in expected:
        hint = did_you_mean(value.lower(), expected) or f"write a list: [{value}]"
    message = f"{_show(value)} is neither {' nor '.join(dict.fromkeys(expected))}"
    return Problem(message, place=place, path=here, hint=hint, code="RCP004")


def _choice_problem(value: Any, choices: list[str], place: str, here: str) -> Problem:
    hint = did_you_mean(str(value).lower(), choices)
    if isinstance(value, str) and value in METHODS and here.endswith("loss_type"):
        hint = f"{value} is a method: add a section `{value}: {{}}`, and run prefcli {value}"
    return Problem(
        f"{_show(value)} is not one of {', '.join(choices)}",
        place=place,
        path=here,
        hint=hint,
        code="RCP006",
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
    """Suggest a value, if the wrong one shows what was meant."""
    if kind == "list_type" and is_source(path):
        is_name = isinstance(value, str) and value.isprintable()
        return f"write {{path: {value if is_name else 'FILE_OR_HUB_ID'}}}"
    if isinstance(value, str) and not value.isprintable():
        return None  # a terminal would obey it
    if kind == "list_type" and isinstance(value, str | int | float):
        return f"write a list: [{value}]"
    if kind == "model_type" and isinstance(value, str) and is_source(path):
        return f"write {{path: {value}}}"
    if kind == "model_type" and (match := _KEY_AND_VALUE.fullmatch(str(value))):
        return f"write `{match[1]}: {match[2]}`, with a space after the colon"
    if kind == "model_type":
        return example(path) or "write {} for all defaults, or `key: value` lines below it"
    if kind == "string_type" and isinstance(value, bool | int):
        return f'quote it: "{_show(value)}"'
    if kind == "string_type" and isinstance(value, float):
        return "put it in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        without = value.rstrip(", ")
        if _DECIMAL_COMMA.fullmatch(without):
            return f"write {without.replace(',', '.')}, with a decimal point"
        if without != value and isinstance(number_or_flag(without), bool | int | float):
            return f"write {without}, without the comma"
        meant = number_or_flag(value) if len(value) < 40 and value.isascii() else value
        if isinstance(meant, bool | int | float) and isinstance(meant, bool) == (
            kind == "bool_type"
        ):
            return "write it without quotes"
        return f"write {_TYPES[kind]}"
    return None


def missing_method(recipe: Recipe, name: str, places: Places) -> Problem:
    """The problem of `prefcli kto` on a recipe without a kto section."""
    assert name in METHODS
    return Problem(
        f"the recipe has no {name!r} section; it has {', '.join(recipe.methods)}",
        place=f"{places.source}:1:1",
        hint=f"add `{name}: {{}}` to the recipe or `{name}={{}}` to the command for the defaults, "
        f"or run `prefcli {next(iter(recipe.methods))} {places.source}`",
        code="RCP018",
    )
