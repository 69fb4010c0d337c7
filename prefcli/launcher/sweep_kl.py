"""The KL of a sweep's runs that did not keep the reference in memory, measured after them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from prefcli.checkpoints.atomic import write_text
from prefcli.methods import METHODS, Method
from prefcli.metrics import DISTANCE, Row
from prefcli.recipe import Recipe, load
from prefcli.report.run_data import RECIPE_FILE, Run

Measure = Callable[[Recipe, Method, Sequence[str]], list[float | None]]
_FILE = "kl.json"
_VALUES = TypeAdapter(dict[str, float | None])


def with_kl(runs: Sequence[Run], folder: Path, measure: Measure | None) -> list[Run]:
    """Return the runs with the KL in their last evaluation. Raises RecipeError and DataError.

    Values are kept in a file of the sweep's folder. measure: as `final_kl`; None measures nothing.
    """
    known = _read(folder)
    lacking = [run for run in runs if _lacks(run) and _key(run) not in known]
    if measure is not None:
        for recipe, method, some in _by_reference(lacking):
            values = measure(recipe, method, [str(run.path / "model") for run in some])
            known |= {_key(run): value for run, value in zip(some, values, strict=True)}
        if lacking:
            with suppress(OSError):  # the next comparison measures them again
                write_text(folder / _FILE, json.dumps(known, indent=2) + "\n")
    return [_with_value(run, known) if _lacks(run) else run for run in runs]


def _lacks(run: Run) -> bool:
    is_policy = run.method in METHODS and METHODS[run.method].head == "language_model"
    is_evaluated = run.status == "finished" and bool(run.evals)
    return is_policy and is_evaluated and DISTANCE not in run.model_eval


def _key(run: Run) -> str:
    return f"{run.name} {run.record.get('finished')}"


def _read(folder: Path) -> dict[str, float | None]:
    """Return the values in the file; none if it is damaged, so that they are measured again."""
    with suppress(OSError, ValidationError):
        return _VALUES.validate_json((folder / _FILE).read_bytes())
    return {}


def _by_reference(runs: Sequence[Run]) -> list[tuple[Recipe, Method, list[Run]]]:
    """Return the runs that have the same reference and the same rows together."""
    groups: dict[str, tuple[Recipe, Method, list[Run]]] = {}
    for run in runs:
        recipe = load(str(run.path / RECIPE_FILE)).recipe
        method = recipe.methods[run.method]
        key = repr((recipe.model, recipe.reference, recipe.data, method.rows))
        groups.setdefault(key, (recipe, method, []))[2].append(run)
    return list(groups.values())


def _with_value(run: Run, known: Mapping[str, float | None]) -> Run:
    value = known.get(_key(run))
    if value is None:
        return run
    last = run.model_eval
    evals: list[Row] = [{**row, DISTANCE: value} if row is last else row for row in run.evals]
    return replace(run, evals=evals)
