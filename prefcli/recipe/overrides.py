"""KEY=VALUE arguments of the command line, applied to the recipe's data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import secrets
from prefcli.recipe.source_map import Key, Places, dotted
from prefcli.recipe.yaml_errors import MAX_DEPTH
from prefcli.recipe.yaml_reader import scalar

_FORM = "write KEY=VALUE, e.g. training.learning_rate=1e-6 or data.eval.split=test"
_KEY = re.compile(r"[^\s.\[\]=]+(?:\.[^\s.\[\]=]+|\[[0-9]{1,6}\])*")
_PART = re.compile(r"\[([0-9]+)\]|([^.\[\]]+)")


class _OverrideError(Exception):
    """Why an override can't be applied, and what to write instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def key_path(text: str) -> Key | None:
    """The parts of a path such as `data.train[0].path`; None if it is not a dotted path."""
    if not _KEY.fullmatch(text) or not text.isprintable():
        return None
    return tuple(int(index) if index else name for index, name in _PART.findall(text))


def refuse_spaces(arguments: Sequence[str]) -> None:
    """Raise RecipeError for KEY = VALUE, which the shell passes as three arguments."""
    for before, text, after in zip(("", *arguments), arguments, (*arguments[1:], ""), strict=False):
        if text == "=" or (text.startswith("=") and "=" not in before):
            key, value = before, text[1:] or after
        elif text.endswith("=") and after and "=" not in after:
            key, value = text[:-1], after
        else:
            continue
        if key_path(key) is not None:
            raise RecipeError(
                "spaces around the =",
                place=f"override {f'{key} = {value}'[:200]!r}",
                hint=f"write {key}={value}",
                code="RCP013",
            )


def override(data: dict[str, Any], overrides: Sequence[str], places: Places) -> list[Problem]:
    """Apply each override to `data` in place; those that can't be applied are reported.

    Raises RecipeError for an override with spaces.
    """
    refuse_spaces(overrides)
    problems = []
    for text in overrides:
        place = f"override {text[:200]!r}"
        if secrets.is_secret(text):
            problems.append(secrets.refuse("override on the command line"))
            continue
        name, equals, value = text.partition("=")
        path = key_path(name.strip())
        if not equals or path is None or len(path) > MAX_DEPTH:
            message = f"{name[:40]!r} can't be a key" if equals else "not KEY=VALUE"
            problems.append(Problem(message, place=place, hint=_FORM, code="RCP013"))
            continue
        if name.startswith(("+", "~")):
            without = text.lstrip("+~")
            hint = f"remove the {name[0]}: {without}"
            problems.append(
                Problem(f"{name[0]} is not part of a key", place=place, hint=hint, code="RCP013")
            )
            continue
        if not value.strip():
            problems.append(_no_value(place, path))
            continue
        try:
            path = _set(data, path, scalar(value))
        except _OverrideError as error:
            problems.append(
                Problem(str(error), place=place, path=dotted(path), hint=error.hint, code="RCP014")
            )
        except RecipeError as error:
            problems += [
                replace(p, place=place, path=_join(dotted(path), p.path)) for p in error.problems
            ]
        else:
            places.overridden(path, text)
    return problems


def _join(path: str, inner: str | None) -> str:
    return path if not inner else f"{path}{'' if inner.startswith('[') else '.'}{inner}"


def _no_value(place: str, path: Key) -> Problem:
    # Usually an unset shell variable: `output_dir=$RUN`.
    return Problem(
        "no value after the =",
        place=place,
        path=dotted(path),
        hint=f"write {dotted(path)}=null for nothing, or check the shell variable",
        code="RCP007",
    )


def _set(data: Any, path: Key, value: Any) -> Key:
    """Set `value` at `path`, creating sections; returns the path as it is in the data."""
    here: Key = ()
    for i, part in enumerate(path):
        if isinstance(data, list):
            part = _index(data, part, here, path[i:])
        elif isinstance(data, dict):
            if isinstance(part, int):
                raise _not_a_list(here, path[i + 1 :], "is a section")
        elif isinstance(part, int):
            raise _not_a_list(here, path[i + 1 :], "is a single value")
        else:
            raise _OverrideError(f"{dotted(here)} is a single value, not a section with keys")
        here = (*here, part)
        if i == len(path) - 1:
            data[part] = value
        elif isinstance(data, list) or data.get(part) is not None:
            data = data[part]
        elif indices := [j for j in range(i + 1, len(path)) if isinstance(path[j], int)]:
            name = dotted((*here, *path[i + 1 : indices[0]]))
            raise _OverrideError(
                f"the recipe has no list {name}", f"write the whole list: {name}=[...]"
            )
        else:
            data[part] = {}
            data = data[part]
    return here


def _index(data: list[Any], part: str | int, here: Key, rest: Key) -> int:
    # OmegaConf also accepts `train.0.path` for `train[0].path`.
    if isinstance(part, str) and not re.fullmatch(r"[0-9]{1,6}", part):
        raise _OverrideError(
            f"{dotted(here)} is a list of {len(data)} entries",
            f"write {dotted((*here, 0, *rest))}=...",
        )
    if int(part) >= len(data):
        raise _OverrideError(f"{dotted(here)} has {len(data)} entries; the first is [0]")
    return int(part)


def _not_a_list(here: Key, rest: Key, what: str) -> _OverrideError:
    instead = dotted((*here, *rest))
    return _OverrideError(f"{dotted(here)} {what}, not a list", f"write {instead}=...")
