"""${...} in values. Each is resolved separately, so that every mistake is reported."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from prefcli.errors import Problem
from prefcli.recipe import secrets
from prefcli.recipe.source_map import Key, Places, dotted, leaves, put
from prefcli.text import first_line

# More than a recipe needs. Without limits a few lines could keep a machine busy for hours.
MAX_VALUES, MAX_CHAIN, MAX_CHARACTERS, MAX_COPIED = 100, 10, 2_000, 2_000

_OPEN = "???"
"""OmegaConf's mark for a missing value."""
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
_SHELL_VARIABLE = re.compile(r"\$([A-Z_][A-Z0-9_]*)(?=/|$)")
_WHOLE = re.compile(r"\$\{[^${}]*\}")
_FORMS = "forms: ${section.key}, ${oc.env:NAME}, ${oc.env:NAME,default}, ${recipe_dir:}"


def resolve(
    data: dict[str, Any], path: Path, places: Places
) -> tuple[dict[Key, str], list[Problem]]:
    """Resolve in place. Also returns whole values that came as text, but may be numbers."""
    waiting, refused, problems = _collect(data, places)
    if not waiting and not refused:
        return {}, problems
    # Most recipes have no interpolation, and OmegaConf takes as long to import as the schema.
    from omegaconf import OmegaConf
    from omegaconf.errors import (
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    folder = str(path.resolve().parent)
    OmegaConf.register_resolver("recipe_dir", lambda: folder, replace=True)
    collected = (*waiting, *refused)
    for at in collected:
        put(data, at, _OPEN)
    config = OmegaConf.create(data)
    for at in collected:
        put(data, at, None)
    loose: dict[Key, str] = {}
    copied = 0
    for _ in range(MAX_CHAIN):
        before = len(waiting)
        for at, text in list(waiting.items()):
            try:
                value = _evaluate(config, at, text)
            except (InterpolationToMissingValueError, MissingMandatoryValue):
                continue
            except (OmegaConfBaseException, RecursionError) as error:
                problems.append(_problem(at, text, *_reason(error), places))
                del waiting[at]
                continue
            del waiting[at]
            copied += sum(1 for _ in leaves(value))
            if copied > MAX_COPIED or len(str(value)) > MAX_COPIED * 10:
                problems.append(_problem(at, text, "it makes the recipe too large", None, places))
                return loose, problems
            if isinstance(value, str) and _WHOLE.fullmatch(text):
                loose[at] = value
            problems += _store(data, config, at, value, places)
        if len(waiting) == before:
            break
    why = "it refers to itself, or through more than ten other values"
    if problems:
        why = "a value that it refers to can't be resolved"
    for at, text in waiting.items():
        problems.append(_problem(at, text, why, None, places))
    return loose, problems


def _collect(
    data: dict[str, Any], places: Places
) -> tuple[dict[Key, str], list[Key], list[Problem]]:
    """The values to resolve, and those that are malformed with their problems."""
    waiting: dict[Key, str] = {}
    refused, problems = [], []
    for at, text in list(leaves(data)):
        if isinstance(text, str) and (name := _SHELL_VARIABLE.match(text)):
            problems.append(
                Problem(
                    f"{name[0]} is not replaced by its value",
                    place=places.value(at),
                    path=dotted(at),
                    hint=f"write ${{oc.env:{name[1]}}}{text[name.end() :]}",
                    code="RCP012",
                )
            )
            continue
        if not isinstance(text, str) or ("${" not in text and text != _OPEN):
            continue
        problem = _malformed(at, text, places)
        if problem is None and len(waiting) == MAX_VALUES:
            problem = _problem(at, text, f"a recipe has at most {MAX_VALUES}", None, places)
        if problem:
            refused.append(at)
            problems.append(problem)
        else:
            waiting[at] = text
    return waiting, refused, problems


def _malformed(at: Key, text: str, places: Places) -> Problem | None:
    if text == _OPEN:
        name = dotted(at)
        return Problem(
            "'???' is a placeholder for a value",
            place=places.value(at),
            path=name,
            hint=f"write a value, or add {name}=... to the command line",
            code="RCP012",
        )
    if len(text) > MAX_CHARACTERS:
        why = f"the text is longer than {MAX_CHARACTERS} characters"
        return _problem(at, text, why, None, places)
    for name in _RESOLVER.findall(text):
        if name not in ("oc.env", "recipe_dir"):
            return _problem(at, text, f"there is no ${{{name}:...}}", None, places)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.create({"value": text})
    except (OmegaConfBaseException, RecursionError):
        return _problem(at, text, "a brace is missing or a character misplaced", None, places)
    return None


def _evaluate(config: Any, at: Key, text: str) -> Any:
    """The value of `text` at the path `at`; afterwards the path is unresolved again."""
    from omegaconf import OmegaConf

    parent = config
    for part in at[:-1]:
        parent = parent[part]
    try:
        with warnings.catch_warnings():
            # OmegaConf warns about `${oc.env:NAME,}`, whose default is empty.
            warnings.simplefilter("ignore")
            parent[at[-1]] = text
            value = parent[at[-1]]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        return value
    finally:
        parent[at[-1]] = _OPEN


def _store(data: Any, config: Any, at: Key, value: Any, places: Places) -> list[Problem]:
    held = {"value": value}
    is_secret = bool(secrets.mask(held, places))
    problems = [secrets.refuse(places.value(at), dotted(at))] if is_secret else []
    put(data, at, held["value"])
    # A "${" in the result (escaped, or from an environment variable) must stay as it is.
    quoted = isinstance(value, str) and "${" in value
    put(config, at, value.replace("${", r"\${") if quoted else held["value"])
    return problems


def _reason(error: Exception) -> tuple[str, str | None]:
    """OmegaConf's error as a reason, and the cure."""
    what = first_line(error)
    if match := re.search(r"Environment variable '(.*)' not found", what):
        name = match[1]
        return f"the environment variable {name} is not set", (
            f"export {name}, or write a default: ${{oc.env:{name},DEFAULT}}"
        )
    if match := re.search(r"(?:Interpolation|resolving) key '(.*?)'", what):
        return f"the recipe has no {match[1]!r} (defaults can't be referred to)", None
    if isinstance(error, RecursionError) or "ecursive" in what or "parent node" in what:
        return "it refers to itself", None
    if "TypeError" in what:
        return "wrong number of arguments after the colon", _FORMS
    return what.rstrip(".").strip('"'), _FORMS


def _problem(at: Key, text: str, why: str, hint: str | None, places: Places) -> Problem:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return Problem(
        f"{shown!r} can't be resolved: {why}",
        place=places.value(at),
        path=dotted(at),
        hint=hint or _FORMS,
        code="RCP012",
    )
