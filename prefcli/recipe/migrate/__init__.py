"""Migration of other tools' YAML configs to recipes.

A new tool is one file here and one entry in TOOLS.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import secrets
from prefcli.recipe.load import load_text
from prefcli.recipe.migrate.axolotl import AXOLOTL
from prefcli.recipe.migrate.draft import Draft, Dropped, Renamed
from prefcli.recipe.migrate.handbook import HANDBOOK
from prefcli.recipe.migrate.llama_factory import LLAMA_FACTORY
from prefcli.recipe.migrate.rules import Drop, apply_rules
from prefcli.recipe.migrate.source_tool import SourceTool, find_method
from prefcli.recipe.migrate.trl import TRL
from prefcli.recipe.source_map import Key, Places, dotted, leaves
from prefcli.recipe.yaml_reader import MissingValue, parse, read_text
from prefcli.recipe.yaml_writer import recipe_text

TOOLS: tuple[SourceTool, ...] = (AXOLOTL, LLAMA_FACTORY, HANDBOOK, TRL)
"""The tools, in the order in which a file's keys are compared with their signature keys."""


@dataclass(frozen=True)
class Migration:
    """The result of a migration. `text` is the recipe, or None if there are problems."""

    tool: str | None = None
    method: str | None = None
    text: str | None = None
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """List the renamed and dropped keys and the notes, for people."""
        renamed = [f"{r.place}: {r.key} -> {r.path}: {_short(r.value)}" for r in self.renamed]
        dropped = [f"{d.place}: {d.key} dropped: {d.reason}" for d in self.dropped]
        changes = sorted(renamed + dropped, key=_position)
        return [f"{self.tool}, for {self.method}", *changes, *(f"note: {n}" for n in self.notes)]

    def as_dict(self) -> dict[str, Any]:
        """Return the migration as plain data, for --json."""
        return {
            "tool": self.tool,
            "method": self.method,
            "recipe": self.text,
            "renamed": [vars(entry) for entry in self.renamed],
            "dropped": [vars(entry) for entry in self.dropped],
            "notes": self.notes,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def migrate(path: str, method: str | None = None, devices: int | None = None) -> Migration:
    """Convert a config to a recipe, or collect all problems of the config.

    Raises RecipeError for a file that is not YAML or belongs to no tool.
    """
    data, places, problems = parse(read_text(path), path)
    problems = [problem for problem in problems if not isinstance(problem, MissingValue)]
    tool = _find_tool(data, path)
    problems += _mask_tokens(data, places, tool)
    method_or_problem = find_method(tool, data, places, method)
    if isinstance(method_or_problem, Problem):
        return Migration(tool.name, problems=_in_file_order([*problems, method_or_problem]))
    method = method_or_problem
    draft = Draft(tool.name, data, places, method, devices, tool.defaults(method, data))
    draft.problems += [*problems, *_interpolations(data, places)]
    apply_rules(draft, tool.table)
    if draft.assumed:
        listed = ", ".join(f"{key} {value}" for key, value in draft.assumed.items())
        draft.note(f"{tool.name}'s defaults for keys that are not in the file: {listed}")
    text = _header(draft, Path(path).name) + recipe_text(_values(draft))
    draft.problems += _schema_problems(text, draft)
    return Migration(
        tool.name,
        method,
        None if draft.problems else text,
        draft.renamed,
        draft.dropped,
        draft.notes,
        _in_file_order(draft.problems),
    )


def _find_tool(data: dict[str, Any], path: str) -> SourceTool:
    if "model" in data and "data" in data:
        raise RecipeError(
            "this is already a recipe",
            place=f"{path}:1:1",
            hint=f"run prefcli validate {path}",
            code="RCP151",
        )
    for tool in TOOLS:
        if tool.signature_keys & data.keys():
            return tool
    names = ", ".join(tool.name for tool in TOOLS)
    raise RecipeError(
        f"the keys belong to none of these tools: {names}",
        place=f"{path}:1:1",
        hint="pass the YAML file that one of them trains with",
        code="RCP150",
    )


def _mask_tokens(data: dict[str, Any], places: Places, tool: SourceTool) -> list[Problem]:
    """Hide access tokens in `data`; report those whose key is not dropped anyway."""
    dropped = {key for key, rule in tool.table.items() if isinstance(rule, Drop)}
    return [p for p in secrets.mask(data, places) if p.path not in dropped]


def _interpolations(data: dict[str, Any], places: Places) -> list[Problem]:
    return [
        Problem(
            "prefcli reads ${...} as an interpolation",
            places.value(path),
            dotted(path),
            "write the value itself",
            code="RCP166",
        )
        for path, value in leaves(data)
        if isinstance(value, str) and "${" in value
    ]


def _values(draft: Draft) -> dict[str, Any]:
    """Return the recipe by dotted paths of two parts; deeper paths become a mapping."""
    values: dict[str, Any] = {draft.method: {}}
    for path, value in draft.values.items():
        *sections, key = path.split(".")
        if len(sections) > 1:
            values.setdefault(".".join(sections), {})[key] = value
        else:
            values[path] = value
    return values


def _schema_problems(text: str, draft: Draft) -> list[Problem]:
    """Return what the schema reports about the new recipe, at the keys it was made from."""
    try:
        load_text(text, draft.places.source)
    except RecipeError as error:
        reported = {re.split(r"[.\[]", problem.path or "")[0] for problem in draft.problems}
        return list(_at_origins(error.problems, reported, draft))
    return []


def _at_origins(
    problems: tuple[Problem, ...], reported: set[str], draft: Draft
) -> Iterator[Problem]:
    for problem in problems:
        origin = _origin(problem.path or "", draft)
        # A missing key or a conflict may only follow from a problem that is reported already.
        if origin is None and not reported:
            missing = problem.message == "is missing"
            yield replace(
                problem,
                message="no key of the file becomes it" if missing else problem.message,
                place=f"{draft.places.source}:1:1",
                hint=None if missing else problem.hint,
                code="RCP167" if missing else problem.code,
            )
        elif origin is not None and origin[0] not in reported:
            yield replace(
                problem,
                message=f"becomes {problem.path}: {problem.message}",
                place=draft.places.value(origin),
                path=dotted(origin),
            )


def _origin(path: str, draft: Draft) -> Key | None:
    """Return the key behind a dotted path of the recipe, or behind its nearest section."""
    while path:
        if path in draft.origins:
            return draft.origins[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def _header(draft: Draft, name: str) -> str:
    lines = [f"# Migrated from {draft.tool}'s {name}, for prefcli {draft.method}."]
    for note in draft.notes:
        lines += textwrap.wrap(
            note, 96, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: _position(str(problem)))
    return [secrets.hide(problem) for problem in ordered]


def _position(line: str) -> tuple[int, int]:
    match = re.search(r":(\d+):(\d+)(?::|$)", line)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")
