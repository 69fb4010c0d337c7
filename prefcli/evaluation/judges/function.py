"""A Python function that judges."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli.data.digests import folder_digest
from prefcli.errors import RecipeError
from prefcli.evaluation.judges.base import Completion, Judge, Scores, to_score
from prefcli.model.chat_template import TimeLimitError, time_limit
from prefcli.recipe.sections import FunctionJudge
from prefcli.text import counted, first_line

_KEY = "judge.function.name"


class Function(Judge):
    """A function of a list of prompts and a list of completions."""

    def __init__(self, options: FunctionJudge) -> None:
        """Import the function. Raises RecipeError."""
        self._options = options
        self._function, file = _load(options.name)
        self.description = f"function {options.name}"
        self.settings = {_KEY: options.name}
        self.code = {file: folder_digest(Path(file))} if os.path.isfile(file) else {}

    def score(self, rows: Sequence[Completion]) -> Iterator[Scores]:
        """Call the function once."""
        if not rows:
            return
        name, seconds = self._options.name, self._options.timeout
        try:
            with time_limit(seconds):
                returned = self._function([r.prompt for r in rows], [r.text for r in rows])
                values = None if _is_one_value(returned) else list(returned)
        except TimeLimitError:
            raise RecipeError(
                f"{name} did not return within {seconds:g} s for {len(rows)} completions, the "
                f"first of them {rows[0].shown}",
                code="JDG003",
                place=rows[0].place,
                hint="raise judge.function.timeout; the same command continues where this one "
                "stopped",
            ) from None
        # The user's code may raise any exception, and may call sys.exit.
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"{name} raised {type(error).__name__} in {_line_of(error)}: {first_line(error)}, "
                f"for {len(rows)} completions, the first of them {rows[0].shown}",
                code="JDG006",
                place=rows[0].place,
                hint="correct the function; the same command continues where this one stopped",
            ) from None
        if values is None or len(values) != len(rows):
            what = counted(len(values), "score") if values is not None else f"{returned!r:.60}"
            raise RecipeError(
                f"{name} returned {what} for {counted(len(rows), 'completion')}, the first of "
                f"them {rows[0].shown}",
                code="JDG007",
                place=rows[0].place,
                hint="return one number per completion, in their order",
            )
        yield {i: to_score(value, rows[i], name) for i, value in enumerate(values)}


def _load(name: str) -> tuple[Callable[..., Any], str]:
    """Import a function; return it with its file. Raises RecipeError."""
    place, _, attribute = name.rpartition(":")
    try:
        module = _import_file(place) if place.endswith(".py") else importlib.import_module(place)
        function = getattr(module, attribute)
    # The user's code may raise any exception, and may call sys.exit.
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"can't import {name}: {type(error).__name__}: {first_line(error)}",
            code="JDG001",
            place=_KEY,
            hint="write FILE.py:NAME, or PACKAGE.MODULE:NAME of an installed package",
        ) from None
    if not callable(function):
        raise RecipeError(
            f"{name} is not a function",
            code="JDG001",
            place=_KEY,
            hint="name a function of (prompts, completions)",
        )
    return function, getattr(module, "__file__", None) or ""


def _import_file(name: str) -> Any:
    """Run a file as a module; it may import its neighbours."""
    path = Path(name).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _is_one_value(returned: Any) -> bool:
    """Check for something that is not a sequence of scores: a number, None, a text, a dict."""
    if isinstance(returned, str | bytes | Mapping):
        return True
    try:
        iter(returned)
    except TypeError:
        return True
    return False


def _line_of(error: BaseException) -> str:
    """Return the file and line where the error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
